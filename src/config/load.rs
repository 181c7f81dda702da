//! The whole file: its sections in the order in which they need each other.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::channels::Channels;
use super::codes;
use super::diagnostic::{Diagnostic, Files};
use super::fields::{Collected, Fields, elsewhere};
use super::include::Reader;
use super::inputs::Inputs;
use super::listen::{self, Listeners};
use super::node::{Entry, Node, Yaml};
use super::outline::Outline;
use super::plan::{ApiPlan, ExpressionUse, FunctionUse, Listen, Plan, Plugins, SourceSpan, StorePlan};
use super::{plugins, protocols, sources, store, tls, values};
use crate::model::SourceLocation;

/// Channels and channel patterns in one configuration.
const CHANNELS_MAX: usize = 1000;

/// The version of the language.
const VERSION: usize = 1;
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The result of reading a configuration.
#[derive(Debug)]
pub struct Loaded {
    /// None when anything is wrong.
    pub plan: Option<Plan>,
    /// The plugins next to the routes file, as text.
    pub plugins: Plugins,
    /// Functions that the file names.
    pub functions: Vec<FunctionUse>,
    /// Expressions in the file.
    pub expressions: Vec<ExpressionUse>,
    /// Everything that is wrong.
    pub diagnostics: Vec<Diagnostic>,
    /// The texts that diagnostics point into.
    pub files: Files,
    /// The files it was read from, and those that should have been there.
    pub inputs: Inputs,
    /// The same as the plan, as people compare it, without plugins, which `script` adds. Empty if there is no plan.
    pub outline: Outline,
}

/// Reads a routes file, what it includes, and the plugins next to it. `env` gives environment variables.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Loaded {
    let all = Collected::default();
    all.inputs.borrow_mut().begin(path);
    let mut files = Files::new();
    let folder = path.parent().unwrap_or(Path::new(""));
    let trees = Reader::new(&all, env, folder, &mut files).read(path);
    let plugin_folder = folder.join("plugins");
    let plugins = plugins::read(&all, &plugin_folder, &plugin_folder.to_string_lossy(), &mut files);
    all.plugins.borrow_mut().extend(plugins.sources.keys().cloned());
    let plan = if trees.is_empty() { None } else { plan(&all, &trees, folder) };
    let (diagnostics, inputs) = (all.diagnostics.into_inner(), all.inputs.into_inner());
    let plan = plan.filter(|_| diagnostics.is_empty());
    let mut outline = Outline::default();
    if let Some(plan) = &plan {
        trees.iter().for_each(|tree| outline.add(tree, &all.secrets.borrow()));
        outline.add_files(plan.tls().flat_map(|tls| [&*tls.cert, &*tls.key]).map(|path| (path, inputs.content(path))));
    }
    Loaded {
        plan,
        plugins,
        functions: all.functions.into_inner(),
        expressions: all.expressions.into_inner(),
        diagnostics,
        files,
        inputs,
        outline,
    }
}

/// The sections that files have in common, merged.
#[derive(Default)]
struct Sections<'a> {
    channels: Vec<&'a Entry>,
    protocols: Vec<&'a Entry>,
    sources: Vec<&'a Entry>,
}

fn plan(all: &Collected, trees: &[Node], folder: &Path) -> Option<Plan> {
    let mut sections = Sections::default();
    let (main, included) = trees.split_first()?;
    let mut head = None;
    if let Some(mut fields) = Fields::of(all, main, "the routes file") {
        head = Some(read_head(all, &mut fields, folder));
        read_sections(all, fields, &mut sections);
    }
    for tree in included {
        if let Some(fields) = Fields::of(all, tree, "an included file") {
            read_sections(all, fields, &mut sections);
        }
    }
    no_name_twice(all, "channel", &sections.channels);
    let speakers: Vec<&Entry> = sections.protocols.iter().chain(&sections.sources).copied().collect();
    no_name_twice(all, "protocol or source", &speakers);

    if let Some(first_over) = sections.channels.get(CHANNELS_MAX) {
        // Every name in the file is compared with every channel: without a bound, a small file could take minutes.
        let message = format!("more than {CHANNELS_MAX} channels are declared");
        all.report(
            Diagnostic::new(codes::BOUNDS, first_over.key_span.clone(), message).hint("one pattern, `name:{id}`, allows any number"),
        );
        sections.channels.truncate(CHANNELS_MAX);
    }
    let mut channels = Channels::default();
    sections.channels.iter().for_each(|entry| channels.add(all, entry));
    channels.check_names(all, &names(&sections.protocols), &names(&sections.sources));
    let mut listeners = Listeners::default();
    let protocols = sections.protocols.iter().filter_map(|entry| protocols::protocol(all, &channels, &mut listeners, entry));
    let protocols = protocols.map(Arc::new).collect();
    let sources = sections.sources.iter().filter_map(|entry| sources::source(all, &channels, &mut listeners, entry));
    let sources = sources.map(Arc::new).collect();
    let Head { store, api, reload, stop_within, sockets_per_address } = head?;
    listeners.check(all, &api.listen);
    Some(Plan { store, api, reload, channels: channels.plans, protocols, sources, stop_within, sockets_per_address })
}

fn names<'a>(entries: &[&'a Entry]) -> Vec<&'a str> {
    entries.iter().map(|entry| &*entry.key).collect()
}

fn read_sections<'a>(all: &Collected, mut fields: Fields<'a>, sections: &mut Sections<'a>) {
    fields.raw("include");
    for (key, into) in [("channels", &mut sections.channels), ("protocols", &mut sections.protocols), ("sources", &mut sections.sources)] {
        match fields.get(key).map(|node| (node, &node.value)) {
            None => {}
            Some((_, Yaml::Map(entries))) => into.extend(entries),
            Some((node, _)) => {
                all.wrong_type::<()>(node, &format!("a map of {key} by name"));
                all.channels_uncertain.set(true);
                all.names_uncertain.set(true);
            }
        }
    }
    // If a section has a misspelt key, the names it would have declared are not reported as missing.
    if !fields.finish() {
        all.channels_uncertain.set(true);
        all.names_uncertain.set(true);
    }
}

/// Reports names that an earlier entry has, in whichever file.
fn no_name_twice(all: &Collected, what: &str, entries: &[&Entry]) {
    let mut seen: HashMap<&str, &SourceLocation> = HashMap::new();
    for entry in entries {
        if let Some(first) = seen.insert(&entry.key, &entry.key_span.location) {
            let message = format!("a {what} named `{}` is already declared", entry.key);
            all.report(
                Diagnostic::new(codes::DUPLICATE_NAME, entry.key_span.clone(), message)
                    .hint(format!("the first is {}", elsewhere(first, &entry.key_span))),
            );
        }
    }
}

/// What only the main file says.
struct Head {
    store: StorePlan,
    api: ApiPlan,
    reload: bool,
    stop_within: Duration,
    sockets_per_address: Option<usize>,
}

fn read_head(all: &Collected, fields: &mut Fields<'_>, folder: &Path) -> Head {
    fields.need("version").and_then(|node| version(all, node));
    let api = fields.read("api", api).unwrap_or_else(|| ApiPlan { listen: api_listen(), tls: None, token: None, origins: Vec::new() });
    Head {
        store: fields.read("store", |all, node| store::store(all, node, folder)).unwrap_or_else(|| store::default(folder)),
        api,
        reload: fields.read("reload", values::flag).unwrap_or(true),
        stop_within: fields.read("stop_within", values::duration).unwrap_or(STOP_WITHIN),
        sockets_per_address: fields.read("sockets_per_address", values::count),
    }
}

fn version(all: &Collected, node: &Node) -> Option<()> {
    let written = values::count(all, node)?;
    if written == VERSION {
        return Some(());
    }
    all.fail(codes::VERSION, &node.span, format!("version {written} of the language is not supported; this build supports {VERSION}"))
}

fn api(all: &Collected, node: &Node) -> Option<ApiPlan> {
    let mut fields = Fields::of(all, node, "`api`")?;
    let at: &SourceSpan = fields.get("listen").map_or(&node.span, |node| &node.span);
    let plan = ApiPlan {
        listen: fields.read("listen", listen::address).unwrap_or_else(api_listen),
        tls: tls::tls(all, &mut fields).flatten().and_then(|tls| tls.plan),
        token: fields.read("token", values::secret),
        origins: fields.read("origins", values::origins).unwrap_or_default(),
    };
    let said_token = fields.has("token");
    if fields.finish() && !plan.listen.is_loopback() && plan.token.is_none() {
        let message = format!("`api` on {} can be reached from other machines and has no token", plan.listen);
        let hint = if said_token { "its `token` is empty" } else { "add `token`, or listen on localhost" };
        all.report(Diagnostic::new(codes::API_OPEN, at.clone(), message).hint(hint));
    }
    Some(plan)
}

fn api_listen() -> Listen {
    Listen { host: "localhost".into(), port: 4000 }
}
