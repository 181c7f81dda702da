//! The effects of a row: `set`, `leave`, `join`, `to`, `reply`, `close`, `fail`.

use super::channels::Access;
use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, Fields};
use super::node::{Node, Yaml};
use super::plan::{Join, Publish, RecoverPlan, Reply, Role, SetTarget, Target};
use super::rows::{Rows, is_function};
use super::template::{self, AllowedRefs};
use super::values;
use crate::model::Priority;
use crate::model::fault::Code;
use crate::model::template::{Entry, Template, Text};

/// `set: {session: …, user: …, state.NAME: …}`
pub(super) fn set(all: &Collected, node: &Node, allowed: AllowedRefs) -> Option<Vec<(SetTarget, Template)>> {
    let Yaml::Map(entries) = &node.value else { return all.wrong_type(node, "a map: `{ session: …, state.name: … }`") };
    let one = |entry: &super::node::Entry| {
        let target = match &*entry.key {
            "user" => SetTarget::User,
            "session" => SetTarget::Session,
            key => match key.strip_prefix("state.") {
                Some(name) if !name.is_empty() && !name.contains('.') => SetTarget::State(name.into()),
                _ => {
                    let message = format!("`set` has no key `{key}`");
                    let hint = "known here: `user`, `session`, `state.NAME`";
                    all.report(Diagnostic::new(codes::UNKNOWN_KEY, entry.key_span.clone(), message).hint(hint));
                    return None;
                }
            },
        };
        Some((target, template::template(all, &entry.value, allowed)?))
    };
    Some(entries.iter().filter_map(one).collect())
}

/// One or several values.
fn each(node: &Node) -> &[Node] {
    if let Yaml::List(items) = &node.value { items } else { std::slice::from_ref(node) }
}

/// `leave:` names or globs.
pub(super) fn leave(rows: &Rows<'_>, node: &Node, allowed: AllowedRefs) -> Option<Vec<Text>> {
    Some(each(node).iter().filter_map(|item| channel(rows, item, allowed, Access::Leave)).collect())
}

/// `join:` names, or maps with a key and meta.
pub(super) fn join(rows: &Rows<'_>, node: &Node, allowed: AllowedRefs) -> Option<Vec<Join>> {
    let one = |item: &Node| {
        if !matches!(item.value, Yaml::Map(_)) {
            return Some(Join { channel: channel(rows, item, allowed, Access::Join)?, key: None, meta: None, recover: None });
        }
        let mut fields = Fields::of(rows.all, item, "an entry of `join`")?;
        let channel = fields.need("channel").and_then(|node| channel(rows, node, allowed, Access::Join));
        let key = fields.read("key", |all, node| template::text(all, node, allowed));
        let meta = fields.read("meta", |all, node| template::template(all, node, allowed));
        let recover = fields.get("recover").map(|node| recover(rows.all, node, allowed));
        fields.finish();
        let recover = match recover {
            Some(recover) => Some(recover?),
            None => None,
        };
        Some(Join { channel: channel?, key, meta, recover })
    };
    let joins: Vec<Join> = each(node).iter().filter_map(one).collect();
    if joins.iter().filter(|join| join.recover.is_some()).count() > 1 {
        return rows.all.fail(codes::CONFLICT, &node.span, "only one entry of `join` may have `recover`");
    }
    Some(joins)
}

/// `recover: { since: $.since, epoch: $.epoch }`
fn recover(all: &Collected, node: &Node, allowed: AllowedRefs) -> Option<RecoverPlan> {
    let mut fields = Fields::of(all, node, "`recover`")?;
    let since = fields.need("since").and_then(|node| template::template(all, node, allowed));
    let epoch = fields.read("epoch", |all, node| template::template(all, node, allowed));
    fields.finish();
    Some(RecoverPlan { since: since?, epoch })
}

fn channel(rows: &Rows<'_>, node: &Node, allowed: AllowedRefs, access: Access) -> Option<Text> {
    let text = template::text(rows.all, node, allowed)?;
    rows.channels.check(rows.all, &text, access, rows.actor, &node.span)?;
    Some(text)
}

/// What a row sets for all its targets; a target may override it.
#[derive(Clone)]
struct Shape {
    kind: Option<Text>,
    data: Option<Template>,
    metadata: Option<Template>,
    priority: Option<Priority>,
    except_sender: bool,
}

impl Shape {
    fn read(fields: &mut Fields<'_>, allowed: AllowedRefs, has_sender: bool) -> Self {
        let except = |all: &Collected, node: &Node| values::word(all, node, &[("sender", true)]);
        Self {
            kind: fields.read("as", |all, node| template::text(all, node, allowed)),
            data: fields.read_raw("data", |all, node| template::template(all, node, allowed)),
            metadata: fields.read("metadata", |all, node| template::template(all, node, allowed)),
            priority: fields.read("priority", |all, node| values::word(all, node, &Priority::ALL)),
            except_sender: has_sender && fields.read("except", except).unwrap_or(false),
        }
    }

    fn over(self, row: &Shape) -> Self {
        Self {
            kind: self.kind.or_else(|| row.kind.clone()),
            data: self.data.or_else(|| row.data.clone()),
            metadata: self.metadata.or_else(|| row.metadata.clone()),
            priority: self.priority.or(row.priority),
            except_sender: self.except_sender || row.except_sender,
        }
    }

    fn publish(self, target: Target) -> Publish {
        let Self { kind, data, metadata, priority, except_sender } = self;
        // It is part of the event, so that those who read it later from the log see the same priority.
        let metadata = match priority.map(|priority| Entry::Field("priority".into(), Template::constant(&priority.as_str().into()))) {
            Some(priority) => Some(Template::Object(metadata.map(Entry::Spread).into_iter().chain([priority]).collect())),
            None => metadata,
        };
        Publish { target, kind, data, metadata, except_sender }
    }
}

/// `to:`, with the row's `as`, `data`, `metadata`, `priority` and `except`.
pub(super) fn publish(rows: &Rows<'_>, fields: &mut Fields<'_>, allowed: AllowedRefs, has_message: bool, has_sender: bool) -> Vec<Publish> {
    let said_as = fields.has("as");
    let shape = Shape::read(fields, allowed, has_sender);
    let Some(to) = fields.get("to") else {
        for key in ["as", "data", "metadata", "priority", "except"] {
            if let Some(at) = fields.key_span(key) {
                let message = format!("`{key}` has no effect: nothing is published");
                rows.all.report(Diagnostic::new(codes::MISSING, at.clone(), message).hint("add `to`"));
                break;
            }
        }
        return Vec::new();
    };
    let one = |item: &Node| {
        let (target, own, own_as) = match &item.value {
            Yaml::Map(_) => target(rows, item, allowed, has_sender)?,
            _ => (Target::Channel(channel(rows, item, allowed, Access::Publish)?), None, false),
        };
        if !has_message && !said_as && !own_as {
            let message = "`to` needs `as` where there is no message: nothing else gives the event a type";
            return rows.all.fail(codes::MISSING, &item.span, message);
        }
        Some(own.map_or_else(|| shape.clone(), |own| own.over(&shape)).publish(target))
    };
    each(to).iter().filter_map(one).collect()
}

fn target(rows: &Rows<'_>, node: &Node, allowed: AllowedRefs, has_sender: bool) -> Option<(Target, Option<Shape>, bool)> {
    let mut fields = Fields::of(rows.all, node, "a target of `to`")?;
    fields.exclude("channel", &["client", "user", "session"]);
    fields.exclude("client", &["user", "session"]);
    fields.exclude("user", &["session"]);
    let mut found = fields.get("channel").map(|node| channel(rows, node, allowed, Access::Publish).map(Target::Channel));
    let mut named = |key, make: fn(Text) -> Target| fields.get(key).map(|node| template::text(rows.all, node, allowed).map(make));
    let others = [named("client", Target::Client), named("user", Target::User), named("session", Target::Session)];
    found = found.or(others.into_iter().flatten().next());
    let own_as = fields.has("as");
    let shape = Shape::read(&mut fields, allowed, has_sender);
    if fields.finish() && found.is_none() {
        return rows.all.fail(codes::MISSING, &node.span, "a target of `to` needs `channel`, `client`, `user` or `session`");
    }
    Some((found??, Some(shape), own_as))
}

/// `reply:` and `send:`: a function's name, or a template.
pub(super) fn reply(rows: &Rows<'_>, node: &Node, allowed: AllowedRefs) -> Option<Reply> {
    match node.as_text() {
        Some(word) if is_function(word) => rows.function(node, Role::Handler).map(Reply::Call),
        _ => template::template(rows.all, node, allowed).map(Reply::Template),
    }
}

/// `status:` of an HTTP row.
pub(super) fn status(all: &Collected, node: &Node) -> Option<u16> {
    match values::count(all, node)? {
        code @ 200..=599 => u16::try_from(code).ok(),
        code => all.fail(codes::VALUE, &node.span, format!("`{code}` is not a valid status: it must be from 200 to 599")),
    }
}

/// `close: [code, reason]`; the reason may have references in it.
pub(super) fn close(all: &Collected, node: &Node, allowed: AllowedRefs) -> Option<(u16, Text)> {
    let (code, reason) = values::close(all, node)?;
    let Some(reason) = reason else { return Some((code, Text::constant(""))) };
    let text = template::text(all, reason, allowed)?;
    if let Some(constant) = text.as_constant() {
        values::check_reason(all, constant, &reason.span)?;
    }
    Some((code, text))
}

/// `fail: text`, or `fail: {code, message}`.
pub(super) fn fail(all: &Collected, node: &Node, allowed: AllowedRefs) -> Option<(Code, Text)> {
    if !matches!(node.value, Yaml::Map(_)) {
        return Some((Code::Rejected, template::text(all, node, allowed)?));
    }
    let mut fields = Fields::of(all, node, "`fail`")?;
    let code = if fields.has("code") { fields.read("code", code) } else { Some(Code::Rejected) };
    let message = fields.read("message", |all, node| template::text(all, node, allowed));
    fields.finish();
    let code = code?;
    Some((code, message.unwrap_or_else(|| Text::constant(code.default_message()))))
}

/// A fault's code.
pub(super) fn code(all: &Collected, node: &Node) -> Option<Code> {
    values::word(all, node, &Code::ALL.map(|code| (code.as_str(), code)))
}
