//! JSON through a script and back: the same value, whether the script gives it back, takes it apart or writes and reads it itself.
#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tramline::config::plan::{FnRef, FunctionUse, PluginSource, Plugins, Role, SourceSpan};
use tramline::model::{Event, Json, Now, SourceLocation};
use tramline::script::{Arguments, Call, ScriptError, Scripts, World};

const PLUGIN: &str = "
fn same(msg) { msg }
fn again(msg) { json::parse(json::stringify(msg)) }
fn apart(msg) {
    switch type_of(msg) {
        \"map\" => { let out = #{}; for key in msg.keys() { out[key] = msg[key]; } out }
        \"array\" => msg.map(|item| item),
        _ => msg
    }
}
";
const FUNCTIONS: [&str; 3] = ["same", "again", "apart"];

struct Nobody;

impl World for Nobody {
    fn members(&self, _: &str) -> Vec<Json> {
        Vec::new()
    }
    fn history(&self, _: &str, _: usize) -> Vec<Arc<Event>> {
        Vec::new()
    }
    fn connections(&self, _: &str) -> Vec<Json> {
        Vec::new()
    }
    fn statistics(&self, _: &str) -> Option<Json> {
        None
    }
}

fn function(name: &str) -> FnRef {
    FnRef { plugin: "p".into(), name: name.into() }
}

static SCRIPTS: LazyLock<Arc<Scripts>> = LazyLock::new(|| {
    let source = PluginSource { name: "p".into(), file: "p.rhai".into(), text: PLUGIN.into() };
    let plugins = Plugins { folder: "plugins".into(), sources: BTreeMap::from([("p".into(), source)]) };
    let at = SourceSpan { location: SourceLocation { file: "routes.yaml".into(), line: 1, column: 1 }, len: 1 };
    let uses = FUNCTIONS.map(|name| FunctionUse { function: function(name), role: Role::Handler, at: at.clone() });
    let (scripts, diagnostics) = Scripts::build(&plugins, &uses, &[], None);
    assert_eq!(diagnostics, []);
    scripts
});
static WORLD: LazyLock<Arc<dyn World>> = LazyLock::new(|| Arc::new(Nobody));

fuzz_target!(|text: &str| {
    let Ok(json) = Json::parse(text.into()) else { return };
    // Not every text has a tree: half a surrogate pair is no text, and 1e999 no number. Scripts refuse these.
    let expected = serde_json::from_str::<Value>(text).ok().map(as_a_script_has_it);
    for name in FUNCTIONS {
        let arguments = Arguments::Message { msg: Some(&json), index: None, kind: None, data: None };
        let call = Call { now: Now::read(), conn: None, arguments, world: &WORLD, trial: true };
        // What a script does not look at comes back as the bytes it was.
        let untouched = name == "same" && text.trim_start().starts_with('{');
        match (SCRIPTS.call(&function(name), call), &expected) {
            (Ok(returned), _) if untouched => {
                let tree = |text: &str| serde_json::from_str::<Value>(text).ok();
                assert_eq!(tree(returned.value.unwrap_or_else(Json::null).as_str()), tree(text));
            }
            (Ok(returned), Some(expected)) => {
                let value = returned.value.unwrap_or_else(Json::null);
                assert_eq!(serde_json::from_str::<Value>(value.as_str()).ok().as_ref(), Some(expected), "{name}");
            }
            (Ok(_), None) => panic!("{name}: a script got a value that has no tree"),
            (Err(_), None) => {}
            (Err(error), Some(_)) => panic!("{name}: {error}"),
        }
    }
});

/// Integers beyond 64 bits signed are floats.
fn as_a_script_has_it(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_u64() && !number.is_i64() => number.as_f64().into(),
        Value::Array(list) => list.into_iter().map(as_a_script_has_it).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, as_a_script_has_it(value))).collect(),
        other => other,
    }
}
