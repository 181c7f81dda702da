//! How a call goes: find the program, take it from this thread or compile it, spend within the budget, explain what went wrong.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rhai::{Dynamic, ImmutableString, Map};

use super::call::{Arguments, Call, HasData, PluginReport, Returned, ScriptEffect, ScriptError, SendTarget};
use super::conn::{Conn, ConnCell};
use super::current::{self, Current, OUTPUT_ROOM};
use super::engine::{LEAK_BYTES_MAX, TEXT_BYTES_MAX};
use super::error::{Failure, explain};
use super::health::Ended;
use super::program::{Entry, Loaded, Param, Parameter, Program};
use super::wanted::{Members, Wanted};
use super::{budget, check, convert, host, part, state};
use crate::config::diagnostic::Diagnostic;
use crate::config::plan::{ExpressionUse, FnRef, FunctionUse, Plugins};
use crate::model::Json;
use crate::model::event::epoch_text;
use crate::model::json::Index;
use crate::telemetry::memory::thread_live_bytes;

/// All plugins of one loading. Shared by all threads; each compiles for itself what it calls.
pub struct Scripts {
    /// Tells loadings apart, so that a thread knows when what it compiled is old.
    generation: u64,
    programs: BTreeMap<Arc<str>, Arc<Program>>,
}

/// What this thread compiled, newest loading last.
type Compiled = Vec<(u64, HashMap<Arc<str>, Rc<Loaded>>)>;

thread_local! {
    static COMPILED: RefCell<Compiled> = const { RefCell::new(Vec::new()) };
}

/// While calls of an old loading end, a thread keeps both.
const LOADINGS_MAX: usize = 2;

impl Scripts {
    /// Compiles and checks everything once. What is wrong is in the list; all plugins that are sound can be called.
    pub fn build(plugins: &Plugins, functions: &[FunctionUse], expressions: &[ExpressionUse]) -> (Arc<Scripts>, Vec<Diagnostic>) {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let (programs, diagnostics) = check::check(plugins, functions, expressions);
        (Arc::new(Self { generation: GENERATION.fetch_add(1, Ordering::Relaxed), programs }), diagnostics)
    }

    /// Calls a function of a plugin, or an expression.
    pub fn call(&self, function: &FnRef, call: Call<'_>) -> Result<Returned, ScriptError> {
        let may_act = matches!(call.arguments, Arguments::Message { .. });
        self.run(function, &call, may_act, |value, params, current| {
            let (value, index) = if value.is_unit() { (None, None) } else { given_back(value, params, &call, current)? };
            Ok(Returned { value, index, ..Returned::default() })
        })
    }

    /// Asks an expression or a `validate` function, which must say true or false and may change nothing.
    pub fn test(&self, function: &FnRef, call: Call<'_>) -> Result<bool, ScriptError> {
        let mut truth = false;
        self.run(function, &call, false, |value, _, _| {
            truth = value.as_bool().map_err(|kind| format!("must be true or false, is {}", if kind == "()" { "nothing" } else { kind }))?;
            Ok(Returned::default())
        })?;
        Ok(truth)
    }

    /// Whether a function may ask about the world.
    pub fn asks(&self, function: &FnRef) -> bool {
        self.programs.get(&function.plugin).is_some_and(|program| program.asks)
    }

    /// How every plugin does.
    pub fn report(&self) -> Vec<PluginReport> {
        let report = |program: &Arc<Program>| {
            let numbers = program.health.numbers();
            PluginReport {
                name: program.name.clone(),
                file: program.file.clone(),
                hash: program.hash.clone(),
                functions: program.functions.clone(),
                calls: numbers.calls,
                failures: numbers.failures,
                mean_us: numbers.mean_us,
                max_us: numbers.max_us,
                last_error: numbers.last_error,
                log_lines_dropped: numbers.log_lines_dropped,
                state: numbers.state,
            }
        };
        // Without a file there is nothing to report on: such a program holds expressions only.
        self.programs.values().filter(|program| program.sources.contains_key(&program.name)).map(report).collect()
    }

    pub(super) fn programs(&self) -> impl Iterator<Item = &Program> {
        self.programs.values().map(|program| &**program)
    }

    /// What a plugin's calls left behind on this thread.
    #[cfg(test)]
    pub(super) fn leaked(&self, plugin: &str) -> isize {
        self.programs.get(plugin).and_then(|program| self.loaded(program).ok()).map_or(0, |loaded| loaded.leaked.get())
    }

    fn run(
        &self,
        function: &FnRef,
        call: &Call<'_>,
        may_act: bool,
        read: impl FnOnce(&Dynamic, &[Parameter], &mut Current) -> Result<Returned, String>,
    ) -> Result<Returned, ScriptError> {
        let missing = || ScriptError::Failed(format!("there is no function `{}` of plugin `{}`", function.name, function.plugin));
        let program = self.programs.get(&function.plugin).ok_or_else(missing)?;
        let entry = program.entries.get(&function.name).ok_or_else(missing)?;
        if let Some(why) = program.health.out_of_service() {
            return Err(ScriptError::OutOfService(format!("plugin `{}` is out of service: {why}", program.name)));
        }
        let began = Instant::now();
        let outcome = self.loaded(program).and_then(|loaded| attempt(program, entry, &loaded, call, may_act, read));
        let ended = match &outcome {
            Ok(_) | Err(Failure { error: ScriptError::Thrown { .. }, .. }) => Ended::Well,
            Err(Failure { error: ScriptError::Failed(why) | ScriptError::OutOfService(why), tripped: true }) => Ended::Tripped(why),
            Err(Failure { error: ScriptError::Failed(why) | ScriptError::OutOfService(why), .. }) => Ended::Failed(why),
        };
        if program.health.ended(&ended, began.elapsed(), call.now.wall_ms) {
            told_out_of_service(program, &function.name);
        }
        outcome.map_err(|failure| failure.error)
    }

    /// The program on this thread.
    fn loaded(&self, program: &Program) -> Result<Rc<Loaded>, Failure> {
        let found = COMPILED.with_borrow(|all| {
            let (_, programs) = all.iter().find(|(generation, _)| *generation == self.generation)?;
            programs.get(&program.name).cloned()
        });
        if let Some(loaded) = found {
            return Ok(loaded);
        }
        let loaded = match catch_unwind(AssertUnwindSafe(|| program.load())) {
            Ok(Ok(loaded)) => Rc::new(loaded),
            Ok(Err(error)) => return Err(explain(program, "the top", *error, None)),
            Err(_) => return Err(panicked(program)),
        };
        COMPILED.with_borrow_mut(|all| {
            if !all.iter().any(|(generation, _)| *generation == self.generation) {
                all.push((self.generation, HashMap::new()));
                if all.len() > LOADINGS_MAX {
                    all.remove(0);
                }
            }
            if let Some((_, programs)) = all.iter_mut().find(|(generation, _)| *generation == self.generation) {
                programs.insert(program.name.clone(), loaded.clone());
            }
        });
        Ok(loaded)
    }
}

/// One call on this thread, from arguments to result. Whatever happens in it ends here.
fn attempt(
    program: &Program,
    entry: &Entry,
    loaded: &Loaded,
    call: &Call<'_>,
    may_act: bool,
    read: impl FnOnce(&Dynamic, &[Parameter], &mut Current) -> Result<Returned, String>,
) -> Result<Returned, Failure> {
    let broken = |why: String| Failure { error: ScriptError::Failed(format!("{}: {why}", program.file)), tripped: false };
    let params = match call.arguments {
        Arguments::Message { .. } => entry.message.as_ref(),
        Arguments::Deliver { .. } => entry.deliver.as_ref(),
    };
    let params = params.ok_or_else(|| broken(format!("`{}` is not made for this use", entry.function)))?;
    let running = budget::begin().ok_or_else(|| broken("a script is called from within a script".to_owned()))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| inside(program, entry, loaded, call, params, may_act, read, &running)));
    let Ok(outcome) = outcome else {
        // What the panic left half done in the engine is not used again.
        COMPILED.with_borrow_mut(Vec::clear);
        return Err(panicked(program));
    };
    let kept = outcome.as_ref().map_or(0, footprint);
    let failed = outcome.as_ref().err().map_or(0, |failure| failed_footprint(&failure.error));
    let left = running.held() - kept - failed;
    loaded.leaked.set(loaded.leaked.get().saturating_add(left).max(0));
    if loaded.leaked.get() > LEAK_BYTES_MAX {
        let why = format!("{}: its calls leave memory behind: a closure holds itself", program.file);
        if program.health.take_out(&why, call.now.wall_ms) {
            told_out_of_service(program, &entry.function);
        }
    }
    outcome
}

#[allow(clippy::too_many_arguments)] // One call in one place; a struct for these would be used here alone.
fn inside(
    program: &Program,
    entry: &Entry,
    loaded: &Loaded,
    call: &Call<'_>,
    params: &[Parameter],
    may_act: bool,
    read: impl FnOnce(&Dynamic, &[Parameter], &mut Current) -> Result<Returned, String>,
    running: &budget::Running,
) -> Result<Returned, Failure> {
    let view = call.conn.filter(|_| params.iter().any(|param| param.is == Param::Conn));
    let conn = view.map(|view| Rc::new(ConnCell::new(view.clone())));
    let arguments = arguments(call, params, conn.as_ref())?;
    let entered = current::enter(Current {
        now: call.now,
        plugin: program.name.clone(),
        health: program.health.clone(),
        world: call.world.clone(),
        may_act,
        effects: Vec::new(),
        output_left: OUTPUT_ROOM,
    });
    let result = state::call(&loaded.engine, &loaded.ast, &loaded.state, &entry.function, arguments);
    let fail = |error| explain(program, &entry.function, error, running.trip());
    let value = result.map_err(|error| fail(*error))?;
    // A trip that a call-back swallowed counts all the same.
    if running.trip().is_some() {
        return Err(fail(rhai::EvalAltResult::ErrorTerminated(Dynamic::UNIT, rhai::Position::NONE)));
    }
    let Some(mut current) = entered.finish() else {
        return Err(panicked(program));
    };
    let mut returned = read(&value, params, &mut current).map_err(|why| {
        let why = format!("{} in fn {}: the value it returns: {why}", program.file, entry.function);
        Failure { error: ScriptError::Failed(why), tripped: false }
    })?;
    returned.effects = std::mem::take(&mut current.effects);
    if let Some(conn) = conn {
        let changes = conn.take_changes();
        (returned.state, returned.user, returned.session) = (changes.state, changes.user, changes.session);
    }
    Ok(returned)
}

/// The values a function takes, and no others: converting costs.
fn arguments(call: &Call<'_>, params: &[Parameter], conn: Option<&Rc<ConnCell>>) -> Result<Vec<Dynamic>, Failure> {
    let json = |what: &str, json: Option<&Json>| match json.map(convert::to_dynamic) {
        None => Ok(Dynamic::UNIT),
        Some(Ok(value)) => Ok(value),
        // The sender's doing, not the plugin's.
        Some(Err(why)) => Err(Failure {
            error: ScriptError::Thrown { message: format!("{what} is not for scripts: {why}"), data: None, code: None },
            tripped: false,
        }),
    };
    let value = |param: &Parameter| match (param.is, call.arguments) {
        (Param::Conn, _) => Ok(conn.map_or(Dynamic::UNIT, |conn| Dynamic::from(Conn(conn.clone())))),
        (Param::Msg, Arguments::Message { msg, .. }) => match wanted_part(param, call) {
            Some(part) => Ok(part),
            None => json("the message", msg),
        },
        (Param::Kind, Arguments::Message { kind, .. }) => Ok(kind.map_or(Dynamic::UNIT, |kind| ImmutableString::from(kind).into())),
        (Param::Data, Arguments::Message { data, .. }) => {
            let before = thread_live_bytes();
            let data = data.and_then(HasData::data);
            // The message keeps what was found.
            budget::excuse(thread_live_bytes() - before);
            match wanted_part(param, call) {
                Some(part) => Ok(part),
                None => json("the message's data", data),
            }
        }
        (Param::Event, Arguments::Deliver { event, .. }) => host::event_map(event).map(Dynamic::from_map).map_err(|why| Failure {
            error: ScriptError::Thrown { message: format!("the event is not for scripts: {why}"), data: None, code: None },
            tripped: false,
        }),
        (Param::Sub, Arguments::Deliver { sub, event }) => {
            let mut map = Map::new();
            if sub.positioned {
                map.insert("offset".into(), i64::try_from(event.offset).unwrap_or(i64::MAX).into());
                map.insert("epoch".into(), epoch_text(event.epoch).into());
            }
            map.insert("channel".into(), sub.channel.as_str().into());
            map.insert("key".into(), (&*sub.key).into());
            if let Some(meta) = &sub.meta {
                map.insert("meta".into(), json("the subscription's meta", Some(meta))?);
            }
            Ok(map.into())
        }
        _ => Ok(Dynamic::UNIT),
    };
    params.iter().map(value).collect()
}

/// Marks an object of which the script got a part. Which one, is added.
const PART: i32 = 0x7000;

fn mark(param: &Parameter) -> i32 {
    PART + param.is as i32
}

/// What a parameter is a part of, and which.
fn source<'c>(param: &'c Parameter, call: &Call<'c>) -> Option<(&'c Json, &'c Index, &'c Members, bool)> {
    static NONE: Index = Index::NONE;
    let Wanted::Members { members, returned } = &param.wanted else { return None };
    let Arguments::Message { msg, index, data, .. } = call.arguments else { return None };
    let (json, index) = match param.is {
        Param::Msg => (msg?, index.unwrap_or(&NONE)),
        Param::Data => (data?.data()?, &NONE),
        _ => return None,
    };
    (json.as_str().len() <= TEXT_BYTES_MAX).then_some((json, index, members, *returned))
}

/// The value of a parameter of which not all is wanted.
fn wanted_part(param: &Parameter, call: &Call<'_>) -> Option<Dynamic> {
    let (json, index, members, returned) = source(param, call)?;
    let mut map = Dynamic::from_map(part::to_map(json, index, members)?);
    if returned {
        map.set_tag(mark(param));
    }
    Some(map)
}

/// JSON of the value a function gave back, and its index where it is known.
fn given_back(
    value: &Dynamic,
    params: &[Parameter],
    call: &Call<'_>,
    current: &mut Current,
) -> Result<(Option<Json>, Option<Index>), String> {
    let from = params.iter().find(|param| value.is_map() && value.tag() == mark(param));
    let Some((json, index, members, _)) = from.and_then(|param| source(param, call)) else {
        return Ok((Some(current.output(value)?), None));
    };
    let map = value.as_map_ref()?;
    let (json, index) = current.counted(|bytes_max| part::to_json(&map, json, index, members, bytes_max))?;
    Ok((Some(json), Some(index)))
}

fn panicked(program: &Program) -> Failure {
    Failure { error: ScriptError::Failed(format!("{}: the script engine panicked", program.file)), tripped: true }
}

fn told_out_of_service(program: &Program, function: &str) {
    if let Some(why) = program.health.out_of_service() {
        tracing::warn!(plugin = &*program.name, function, why, "plugin out of service until it changes");
    }
}

/// Bytes a result holds, exactly: texts of JSON have no spare room.
fn footprint(returned: &Returned) -> isize {
    let json = |json: &Option<Json>| json.as_ref().map_or(0, |json| json.as_str().len());
    let shared = |text: &Option<Option<Arc<str>>>| text.iter().flatten().map(|text| (text.len() + 16).next_multiple_of(8)).sum::<usize>();
    let effect = |effect: &ScriptEffect| match effect {
        ScriptEffect::Reply(value) => value.as_str().len(),
        ScriptEffect::Join { channel, key, meta } => channel.capacity() + key.as_ref().map_or(0, String::capacity) + json(meta),
        ScriptEffect::Leave { channel: text } | ScriptEffect::LeaveAll { glob: text } => text.capacity(),
        ScriptEffect::Publish { channel, kind, data, metadata, except, .. } => {
            channel.capacity() + kind.capacity() + data.as_str().len() + json(metadata) + except.as_ref().map_or(0, String::capacity)
        }
        ScriptEffect::SendTo { target: SendTarget::Client(to) | SendTarget::User(to) | SendTarget::Session(to), kind, data } => {
            to.capacity() + kind.capacity() + data.as_str().len()
        }
        ScriptEffect::Close { reason, .. } => reason.capacity(),
    };
    let effects: usize = returned.effects.iter().map(effect).sum();
    let bytes = json(&returned.value) + json(&returned.state) + shared(&returned.user) + shared(&returned.session) + effects;
    (bytes + returned.effects.capacity() * size_of::<ScriptEffect>()).cast_signed()
}

fn failed_footprint(error: &ScriptError) -> isize {
    let bytes = match error {
        ScriptError::Thrown { message, data, code } => {
            message.capacity() + data.as_ref().map_or(0, |data| data.as_str().len()) + code.as_ref().map_or(0, String::capacity)
        }
        ScriptError::Failed(why) | ScriptError::OutOfService(why) => why.capacity(),
    };
    bytes.cast_signed()
}
