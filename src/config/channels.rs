//! `channels:`, and look-ups for the rest of the file: which channel a name or text can mean, and who may use it.

use std::collections::HashMap;
use std::sync::Arc;

use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, Fields, elsewhere, nearest};
use super::listen::shape;
use super::node::{Entry, Node, Yaml};
use super::plan::{Audience, ChannelPlan, HistoryPlan, Keep, OnSlow, Promise, SourceSpan};
use super::template::{self, AllowedRefs};
use super::values::{self, flag};
use crate::model::id::PatternId;
use crate::model::name::ChannelName;
use crate::model::pattern::{Glob, Pattern};
use crate::model::schema::Schema;
use crate::model::template::Text;

const HISTORY: HistoryPlan =
    HistoryPlan { tail: 1000, tail_bytes: 1 << 20, keep: Keep { events: None, age: None }, promise: Promise::Committed };

/// How a protocol or source uses a channel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Join,
    Publish,
    /// Only that there is one.
    Leave,
}

/// All channels of a configuration.
#[derive(Default)]
pub(super) struct Channels {
    pub(super) plans: Vec<Arc<ChannelPlan>>,
    exact: HashMap<Box<str>, usize>,
    patterns: Vec<usize>,
    shapes: HashMap<String, (Box<str>, SourceSpan)>,
    /// Names in `join` and `publish`, to be looked up once all names are known.
    named: Vec<(&'static str, Box<str>, SourceSpan)>,
}

impl Channels {
    /// Reads one entry.
    pub(super) fn add(&mut self, all: &Collected, entry: &Entry) {
        match self.read(all, entry) {
            Some(plan) => {
                if plan.pattern.is_exact() {
                    self.exact.insert(plan.pattern.as_str().into(), self.plans.len());
                } else {
                    self.patterns.push(self.plans.len());
                }
                self.plans.push(Arc::new(plan));
            }
            None => all.channels_uncertain.set(true),
        }
    }

    fn read(&mut self, all: &Collected, entry: &Entry) -> Option<ChannelPlan> {
        let (written, at) = (&*entry.key, &entry.key_span);
        let pattern = match Pattern::channel(written) {
            Ok(pattern) => pattern,
            Err(why) => return all.fail(codes::PATTERN, at, format!("`{written}` is not a valid channel pattern: {why}")),
        };
        if ChannelName::parse(&pattern.fill("x")).is_none() {
            return all.fail(
                codes::NAME,
                at,
                format!("`{written}` is not a valid channel name: at most 256 bytes, no control characters, no `*`"),
            );
        }
        // The same text twice is a name that is already taken, which is reported elsewhere.
        if let Some((_, first)) = self.shapes.insert(shape(&pattern), (written.into(), at.clone())).filter(|(text, _)| **text != *written) {
            let message = format!("`{written}` matches the same names as an entry before it");
            all.report(
                Diagnostic::new(codes::AMBIGUOUS, at.clone(), message).hint(format!("the other is {}", elsewhere(&first.location, at))),
            );
        }
        // `name:` with nothing behind it is a channel with all defaults.
        let empty = Node { span: entry.value.span.clone(), value: Yaml::Map(Vec::new()) };
        let node = if matches!(entry.value.value, Yaml::Null) { &empty } else { &entry.value };
        let mut fields = Fields::of(all, node, "a channel")?;
        fields.exclude("schema", &["schemas"]);
        let audience_at = fields.key_span("audience");
        let plan = ChannelPlan {
            id: PatternId::of(written),
            at: at.location.clone(),
            history: fields.read("history", history).flatten(),
            audience: fields
                .read("audience", |all, node| values::word(all, node, &[("user", Audience::User), ("session", Audience::Session)])),
            data: fields.read("data", |all, node| template::template(all, node, AllowedRefs::CHANNEL)),
            schemas: fields
                .read("schema", |all, node| Some(vec![(Glob::new("*"), values::schema(all, node)?)]))
                .or_else(|| fields.read("schemas", schemas))
                .unwrap_or_default(),
            join: self.names(all, &mut fields, "join"),
            publish: self.names(all, &mut fields, "publish"),
            on_slow: fields.read("on_slow", on_slow).unwrap_or_default(),
            pattern,
        };
        fields.finish();
        if let (Some(_), Some(at), captures @ (0 | 2..)) = (plan.audience, audience_at, plan.pattern.captures().count()) {
            let message = format!("`audience` needs a pattern with exactly one capture; `{written}` has {captures}");
            all.report(Diagnostic::new(codes::AUDIENCE, at.clone(), message).hint("for example `\"user:{id}\"`"));
        }
        Some(plan)
    }

    fn names(&mut self, all: &Collected, fields: &mut Fields<'_>, key: &'static str) -> Option<Vec<Arc<str>>> {
        let names = fields.read(key, values::list)?;
        values::no_doubles(all, &names);
        let found = names.iter().map(|(name, _)| Arc::from(&**name)).collect();
        self.named.extend(names.into_iter().map(|(name, span)| (key, name, span)));
        Some(found)
    }

    /// Reports names in `join` and `publish` lists that are not declared.
    pub(super) fn check_names(&self, all: &Collected, protocols: &[&str], sources: &[&str]) {
        if all.names_uncertain.get() {
            return;
        }
        for (key, name, span) in &self.named {
            let may = |known: &&&str| **known == &**name;
            if protocols.iter().any(|known| may(&known))
                || (*key == "publish" && (&**name == "api" || sources.iter().any(|known| may(&known))))
            {
                continue;
            }
            let known: Vec<&str> = if *key == "join" { protocols.to_vec() } else { [protocols, sources, &["api"]].concat() };
            let what = if *key == "join" { "protocol" } else { "protocol or source" };
            let near = nearest(name, known.iter().copied());
            let hint = near.map_or_else(|| format!("known here: {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
            all.report(Diagnostic::new(codes::WHO, span.clone(), format!("no {what} is named `{name}`")).hint(hint));
        }
    }

    /// Checks that a text can be the name of a channel which lets `actor` do this.
    pub(super) fn check(&self, all: &Collected, text: &Text, access: Access, actor: &str, at: &SourceSpan) -> Option<()> {
        let constant = text.as_constant();
        let glob = access == Access::Leave && constant.is_some_and(Glob::is_glob);
        if let Some(name) = constant.filter(|name| !glob && ChannelName::parse(name).is_none()) {
            return all.fail(codes::NAME, at, format!("`{name}` is not a valid channel name"));
        }
        if all.channels_uncertain.get() {
            return Some(());
        }
        let possible = match constant {
            Some(name) if !glob => self.named_by(name).into_iter().collect(),
            Some(name) => self.beginning_with(name.split('*').next().unwrap_or_default()),
            None => self.beginning_with(text.literal_prefix()),
        };
        if possible.is_empty() {
            let begins = constant.unwrap_or(text.literal_prefix());
            self.unknown(all, begins.split('*').next().unwrap_or_default(), constant.is_some() && !glob, at);
            return None;
        }
        let allows = |plan: &&ChannelPlan| match access {
            Access::Join => plan.join.as_ref().is_none_or(|names| names.iter().any(|name| &**name == actor)),
            Access::Publish => plan.publish.as_ref().is_none_or(|names| names.iter().any(|name| &**name == actor)),
            Access::Leave => true,
        };
        if possible.iter().any(allows) {
            return Some(());
        }
        let (plan, key, verb) = if access == Access::Join { (possible[0], "join", "join") } else { (possible[0], "publish", "publish to") };
        let message = format!("`{actor}` may not {verb} `{}`", plan.pattern);
        let hint = format!("`{key}` of the channel {} does not list it", elsewhere(&plan.at, at));
        all.report(Diagnostic::new(codes::NOT_ALLOWED, at.clone(), message).hint(hint));
        None
    }

    fn named_by(&self, name: &str) -> Option<&ChannelPlan> {
        let by_pattern = || self.patterns.iter().rev().filter(|&&i| self.plans[i].pattern.matches(name).is_some());
        let index = self.exact.get(name).or_else(|| by_pattern().max_by_key(|&&i| self.plans[i].pattern.literal_len()))?;
        self.plans.get(*index).map(|plan| &**plan)
    }

    fn beginning_with(&self, prefix: &str) -> Vec<&ChannelPlan> {
        let fits = |plan: &&ChannelPlan| {
            let own = plan.pattern.as_str().split('{').next().unwrap_or_default();
            own.starts_with(prefix) || (!plan.pattern.is_exact() && prefix.starts_with(own))
        };
        self.plans.iter().map(|plan| &**plan).filter(fits).collect()
    }

    fn unknown(&self, all: &Collected, written: &str, whole: bool, at: &SourceSpan) {
        let names = self.plans.iter().map(|plan| {
            let pattern = plan.pattern.as_str();
            if whole { pattern } else { pattern.split('{').next().unwrap_or_default() }
        });
        let near = nearest(written, names.filter(|name| !name.is_empty()));
        let plan = near.and_then(|near| self.plans.iter().find(|plan| plan.pattern.as_str().starts_with(near)));
        let hint = match plan {
            Some(plan) => format!("a channel named `{}` is declared {}", plan.pattern, elsewhere(&plan.at, at)),
            None => "declare it under `channels`".into(),
        };
        let message = if whole { format!("unknown channel `{written}`") } else { format!("no channel matches `{written}…`") };
        all.report(Diagnostic::new(codes::CHANNEL, at.clone(), message).hint(hint));
    }
}

/// `true`, `false`, or a map of bounds.
fn history(all: &Collected, node: &Node) -> Option<Option<HistoryPlan>> {
    if !matches!(node.value, Yaml::Map(_)) {
        return flag(all, node).map(|keep| keep.then_some(HISTORY));
    }
    let mut fields = Fields::of(all, node, "`history`")?;
    let plan = HistoryPlan {
        tail: fields.read("tail", values::count).unwrap_or(HISTORY.tail),
        tail_bytes: fields.read("tail_bytes", values::size).unwrap_or(HISTORY.tail_bytes),
        keep: fields.read("keep", keep).unwrap_or_default(),
        promise: promise(&mut fields),
    };
    fields.finish();
    Some(Some(plan))
}

/// `{ events: 10000, age: 30d }`
fn keep(all: &Collected, node: &Node) -> Option<Keep> {
    let mut fields = Fields::of(all, node, "`keep`")?;
    let keep = Keep { events: fields.read("events", values::count).map(|n| n as u64), age: fields.read("age", values::duration) };
    fields.finish();
    Some(keep)
}

/// `deliver:` and `durability:`. Events that are acknowledged before the commit are delivered before it too.
fn promise(fields: &mut Fields<'_>) -> Promise {
    fields.exclude("deliver", &["durability"]);
    let words = [("committed", Promise::Committed), ("early", Promise::Early)];
    let deliver = fields.read("deliver", |all, node| values::word(all, node, &words));
    let words = [("full", Promise::Committed), ("relaxed", Promise::Relaxed)];
    let durability = fields.read("durability", |all, node| values::word(all, node, &words));
    durability.or(deliver).unwrap_or_default()
}

/// A word, `{ latest_by: $event.data.id }` or `{ concat: field }`.
fn on_slow(all: &Collected, node: &Node) -> Option<OnSlow> {
    let meant = node.as_text().and_then(|word| nearest(word, ["disconnect", "drop_oldest", "drop_newest", "latest_by", "concat"]));
    let hint = match meant {
        Some("latest_by") => Some("write the key: `{ latest_by: $event.data.id }`"),
        Some("concat") => Some("name a text in the data: `{ concat: delta }`"),
        _ => None,
    };
    if let (Some(hint), Some(meant)) = (hint, meant) {
        let message = format!("`{meant}` needs a value");
        all.report(Diagnostic::new(codes::VALUE, node.span.clone(), message).hint(hint));
        return None;
    }
    if !matches!(node.value, Yaml::Map(_)) {
        type Make = fn() -> OnSlow;
        let words: [(&str, Make); 3] =
            [("disconnect", || OnSlow::Disconnect), ("drop_oldest", || OnSlow::DropOldest), ("drop_newest", || OnSlow::DropNewest)];
        return values::word(all, node, &words).map(|make| make());
    }
    let mut fields = Fields::of(all, node, "`on_slow`")?;
    fields.exclude("latest_by", &["concat"]);
    let latest = fields.get("latest_by").map(|node| latest_by(all, node));
    let concat = fields.get("concat").map(|node| concat(all, node));
    if fields.finish() && latest.is_none() && concat.is_none() {
        return all.fail(codes::MISSING, &node.span, "`on_slow` needs `latest_by` or `concat`");
    }
    latest.or(concat)?
}

fn latest_by(all: &Collected, node: &Node) -> Option<OnSlow> {
    let text = template::text(all, node, AllowedRefs::EVENT)?;
    if let Some(constant) = text.as_constant() {
        let message = format!("`{constant}` is the same for every event");
        all.report(Diagnostic::new(codes::VALUE, node.span.clone(), message).hint("write a reference, for example `$event.data.id`"));
        return None;
    }
    Some(OnSlow::LatestBy(text))
}

/// The path of a text in the data: `delta`, `choice.text`.
fn concat(all: &Collected, node: &Node) -> Option<OnSlow> {
    let written = values::text(all, node)?;
    if written.starts_with('$') || written.split('.').any(str::is_empty) {
        let message = format!("`{written}` is not the path of a member of the data");
        all.report(Diagnostic::new(codes::VALUE, node.span.clone(), message).hint("write `delta`, or `choice.text` for a nested one"));
        return None;
    }
    Some(OnSlow::Concat(written.split('.').map(Box::from).collect()))
}

/// Schemas by type; `_` is for all others, wherever it is in the map.
fn schemas(all: &Collected, node: &Node) -> Option<Vec<(Glob, Arc<Schema>)>> {
    let Yaml::Map(entries) = &node.value else { return all.wrong_type(node, "a map of schemas by event type") };
    let (others, named): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|entry| &*entry.key == "_");
    let glob = |entry: &Entry| Glob::new(if &*entry.key == "_" { "*" } else { &entry.key });
    Some(named.into_iter().chain(others).filter_map(|entry| Some((glob(entry), values::schema(all, &entry.value)?))).collect())
}
