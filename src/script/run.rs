//! How a call works: find the program, take it from this thread or compile it, run it within the budget, explain failures.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rhai::{Dynamic, ImmutableString, Map};

use super::call::{Arguments, Call, HasData, PluginReport, Returned, ScriptEffect, ScriptError, SendTarget};
use super::conn::{Conn, ConnCell};
use super::current::{self, Current, OUTPUT_ROOM};
use super::engine::{ARGUMENT_BYTES_MAX, LEAK_BYTES_MAX, TEXT_BYTES_MAX};
use super::error::{Failure, a_kind, explain, of_function};
use super::program::{Called, Entry, Loaded, Param, Parameter, Program, Programs};
use super::senders::{Sender, Senders};
use super::wanted::{Members, Wanted};
use super::{budget, check, convert, host, library, part, state};
use crate::config::diagnostic::Diagnostic;
use crate::config::plan::{ExpressionUse, FnRef, FunctionUse, Plugins};
use crate::model::event::epoch_text;
use crate::model::json::Index;
use crate::model::{Json, Now, PluginName};
use crate::telemetry::memory::thread_live_bytes;

/// All plugins of one loading. Shared by all threads; each compiles for itself what it calls.
pub struct Scripts {
    /// Identifies a loading, so that a thread knows when its compiled programs are old.
    generation: u64,
    programs: Programs,
    /// Who drove them over their budgets.
    senders: Arc<Senders>,
}

/// What this thread compiled, newest loading last.
type Compiled = Vec<(u64, HashMap<PluginName, Rc<Loaded>>)>;

thread_local! {
    static COMPILED: RefCell<Compiled> = const { RefCell::new(Vec::new()) };
}

/// While calls of an old loading end, a thread keeps both.
const LOADINGS_MAX: usize = 2;

impl Scripts {
    /// Compiles and checks everything once. Mistakes are in the list; all valid plugins can be called. Counters continue from the
    /// previous loading; functions of a plugin that has changed begin in service.
    pub fn build(
        plugins: &Plugins,
        functions: &[FunctionUse],
        expressions: &[ExpressionUse],
        previous: Option<&Scripts>,
    ) -> (Arc<Scripts>, Vec<Diagnostic>) {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let before = previous.map_or(const { &Programs::new() }, |previous| &previous.programs);
        let (programs, diagnostics) = check::check(plugins, functions, expressions, before);
        let senders = previous.map(|previous| previous.senders.clone()).unwrap_or_default();
        (Arc::new(Self { generation: GENERATION.fetch_add(1, Ordering::Relaxed), programs, senders }), diagnostics)
    }

    /// Calls a function of a plugin, or an expression.
    pub fn call(&self, function: &FnRef, call: Call<'_>) -> Result<Returned, ScriptError> {
        let may_act = matches!(call.arguments, Arguments::Message { .. });
        self.run(function, &call, may_act, |value, params, current| {
            let (value, index) = if value.is_unit() { (None, None) } else { given_back(value, params, &call, current)? };
            Ok(Returned { value, index, ..Returned::default() })
        })
    }

    /// Evaluates an expression or a `validate` function, which must return true or false and may not change anything.
    pub fn test(&self, function: &FnRef, call: Call<'_>) -> Result<bool, ScriptError> {
        let mut truth = false;
        self.run(function, &call, false, |value, _, _| {
            truth = value.as_bool().map_err(|kind| format!("must be true or false, is {}", a_kind(kind)))?;
            Ok(Returned::default())
        })?;
        Ok(truth)
    }

    /// Whether a function may ask about the world.
    pub fn asks(&self, function: &FnRef) -> bool {
        let entry = self.programs.get(&function.plugin).and_then(|program| program.entries.get(&function.name));
        entry.is_some_and(|entry| entry.asks)
    }

    /// Whether what a function writes may depend on who gets it.
    pub fn sees_receiver(&self, function: &FnRef) -> bool {
        let entry = self.programs.get(&function.plugin).and_then(|program| program.entries.get(&function.name));
        let params = entry.and_then(|entry| entry.deliver.as_ref());
        params.is_some_and(|params| params.iter().any(|param| matches!(param.is, Param::Conn | Param::Sub)))
    }

    /// A call exceeded its budget: counts it against its sender, who is refused when there are too many.
    pub fn charge(&self, sender: &Sender<'_>, now: Now) {
        self.senders.charge(sender, now);
    }

    /// The same: counts it against the function, which goes out of service if different senders cause too many in a row.
    pub fn tripped(&self, function: &FnRef, why: &str, sender: &Sender<'_>, now: Now) {
        let program = self.programs.get(&function.plugin);
        if let Some(entry) = program.and_then(|program| program.entries.get(&function.name)) {
            entry.service.tripped(sender.principal(), why, now);
        }
    }

    /// A message was refused with [`ScriptError::Spent`]. True if its sender keeps sending: then its connection is to be closed.
    pub fn refused(&self, sender: &Sender<'_>, now: Now) -> bool {
        self.senders.refused(sender, now)
    }

    /// Forgets senders that have nothing against them any more, and logs what was left out. Called now and then.
    pub fn sweep(&self, now: Now) {
        self.senders.sweep(now);
        for program in self.programs.values() {
            if let Some(left_out) = program.health.left_out(now.wall_ms) {
                library::tell_left_out(&program.name, left_out);
            }
        }
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
                called: program.called(),
                out: program.out(),
            }
        };
        // Without a file there is nothing to report on: such a program holds expressions only.
        self.programs.values().filter(|program| program.sources.contains_key(&program.name)).map(report).collect()
    }

    pub(super) fn programs(&self) -> impl Iterator<Item = &Program> {
        self.programs.values().map(|program| &**program)
    }

    /// What a function's calls left behind on this thread.
    #[cfg(test)]
    pub(super) fn leaked(&self, function: &FnRef) -> isize {
        let program = &self.programs[&function.plugin];
        let Ok(loaded) = self.loaded(program) else { panic!("the plugin does not load") };
        loaded.called[program.entries[&function.name].number].leaked.get()
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
        let wait = self.senders.wait(|| call.sender(), call.now).or_else(|| self.senders.wait(|| call.receiver(), call.now));
        if let Some(retry_after) = wait {
            return Err(ScriptError::Spent { retry_after });
        }
        entry.service.admit(call.now, call.trial).map_err(ScriptError::OutOfService)?;
        let began = Instant::now();
        let outcome = self.loaded(program).and_then(|loaded| attempt(program, entry, &loaded, call, may_act, read));
        if !call.trial {
            let failed = match &outcome {
                Ok(_) | Err(Failure::Refused(_)) => None,
                Err(Failure::Broke(why) | Failure::Tripped(why)) => Some(&**why),
            };
            program.health.ended(failed, began.elapsed(), call.now.wall_ms);
            if !matches!(outcome, Err(Failure::Tripped(_) | Failure::Refused(ScriptError::NotForScripts(_)))) {
                entry.service.ended_well(call.now);
            }
        }
        outcome.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Broke(why) => ScriptError::Failed(why),
            Failure::Tripped(why) => ScriptError::Tripped { function: function.clone(), why },
        })
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
        let earlier = COMPILED.with_borrow(|all| {
            let mut programs = all.iter().filter_map(|(_, programs)| programs.get(&program.name));
            programs.find(|loaded| loaded.id == program.id).cloned()
        });
        let loaded = match earlier {
            Some(loaded) => loaded,
            None => match catch_unwind(AssertUnwindSafe(|| program.load())) {
                Ok(Ok(loaded)) => Rc::new(loaded),
                Ok(Err(error)) => return Err(explain(program, "the top", *error, None)),
                Err(_) => return Err(panicked(program)),
            },
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

/// One call on this thread, from arguments to result. Panics are caught here.
fn attempt(
    program: &Program,
    entry: &Entry,
    loaded: &Loaded,
    call: &Call<'_>,
    may_act: bool,
    read: impl FnOnce(&Dynamic, &[Parameter], &mut Current) -> Result<Returned, String>,
) -> Result<Returned, Failure> {
    let broken = |why: &str| Failure::Broke(format!("{}: {why}", of_function(program, &entry.function)));
    let params = match call.arguments {
        Arguments::Message { .. } => entry.message.as_ref(),
        Arguments::Deliver { .. } => entry.deliver.as_ref(),
    };
    let not_made = || broken("it cannot be used here");
    let (params, called) = params.zip(loaded.called.get(entry.number)).ok_or_else(not_made)?;
    let running = budget::begin().ok_or_else(|| broken("a script is called from within a script"))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| inside(program, entry, (loaded, called), call, params, may_act, read, &running)));
    let Ok(outcome) = outcome else {
        // The panic may have left the engines half done, so they are not used again.
        COMPILED.with_borrow_mut(Vec::clear);
        return Err(panicked(program));
    };
    let kept = outcome.as_ref().map_or_else(failed_footprint, footprint);
    let left = running.held() - kept;
    let leaked = called.leaked.get().saturating_add(left).max(0);
    called.leaked.set(leaked);
    // Once too much is leaked, no call may leak more.
    if leaked > LEAK_BYTES_MAX && left > 0 {
        let why = format!("{}: its calls leave memory behind: a closure holds itself", of_function(program, &entry.function));
        entry.service.leaked(&why, call.now);
    }
    outcome
}

#[allow(clippy::too_many_arguments)] // One call in one place; a struct for these would be used here alone.
fn inside(
    program: &Program,
    entry: &Entry,
    (loaded, called): (&Loaded, &Called),
    call: &Call<'_>,
    params: &[Parameter],
    may_act: bool,
    read: impl FnOnce(&Dynamic, &[Parameter], &mut Current) -> Result<Returned, String>,
    running: &budget::Running,
) -> Result<Returned, Failure> {
    let view = call.conn.filter(|_| params.iter().any(|param| param.is == Param::Conn));
    let conn = view.map(|view| Rc::new(ConnCell::new(view.clone())));
    let arguments = arguments(call, params, conn.as_ref())?;
    if running.held() > ARGUMENT_BYTES_MAX {
        return Err(not_for_scripts("the message", &convert::too_much_memory()));
    }
    let entered = current::enter(Current {
        now: call.now,
        plugin: program.name.clone(),
        health: (!call.trial).then(|| program.health.clone()),
        world: call.world.clone(),
        may_act,
        effects: Vec::new(),
        output_left: OUTPUT_ROOM,
    });
    running.start_clock();
    let result = state::call(&loaded.engine, &loaded.ast, &loaded.state, (&entry.function, called.body.as_ref()), arguments);
    let fail = |error| explain(program, &entry.function, error, running.trip());
    let value = result.map_err(|error| fail(*error))?;
    // An exceeded budget counts even if a call-back swallowed the error.
    if running.trip().is_some() {
        return Err(fail(rhai::EvalAltResult::ErrorTerminated(Dynamic::UNIT, rhai::Position::NONE)));
    }
    let Some(mut current) = entered.finish() else {
        return Err(panicked(program));
    };
    let mut returned = read(&value, params, &mut current)
        .map_err(|why| Failure::Broke(format!("{}: the value it returns: {why}", of_function(program, &entry.function))))?;
    returned.effects = std::mem::take(&mut current.effects);
    if let Some(conn) = conn {
        let changes = conn.take_changes();
        (returned.state, returned.user, returned.session) = (changes.state, changes.user, changes.session);
    }
    Ok(returned)
}

/// The sender is responsible for the message, not the plugin.
fn not_for_scripts(what: &str, why: &str) -> Failure {
    Failure::Refused(ScriptError::NotForScripts(format!("{what} cannot be given to a script: {why}")))
}

/// The arguments of a function. Only those it takes are converted, because converting costs.
fn arguments(call: &Call<'_>, params: &[Parameter], conn: Option<&Rc<ConnCell>>) -> Result<Vec<Dynamic>, Failure> {
    let json = |what: &str, json: Option<&Json>| match json.map(convert::to_dynamic) {
        None => Ok(Dynamic::UNIT),
        Some(Ok(value)) => Ok(value),
        Some(Err(why)) => Err(not_for_scripts(what, &why)),
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
        (Param::Event, Arguments::Deliver { event, .. }) => {
            host::event_map(event, &param.wanted).map(Dynamic::from_map).map_err(|why| not_for_scripts("the event", &why))
        }
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

/// Tags an object of which the script got a part; a number says which object.
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

/// The value of a parameter of which the function uses only a part.
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
    Failure::Tripped(format!("{}: the script engine panicked", program.file))
}

/// Bytes a result holds, exactly: texts of JSON have no spare room.
fn footprint(returned: &Returned) -> isize {
    let json = |json: &Option<Json>| json.as_ref().map_or(0, |json| json.as_str().len());
    let shared = |text: Option<&str>| text.map_or(0, |text| (text.len() + 16).next_multiple_of(8));
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
    let user = shared(returned.user.as_ref().and_then(|user| user.as_deref()));
    let session = shared(returned.session.as_ref().and_then(|session| session.as_deref()));
    let effects: usize = returned.effects.iter().map(effect).sum();
    let bytes = json(&returned.value) + json(&returned.state) + user + session + effects;
    (bytes + returned.effects.capacity() * size_of::<ScriptEffect>()).cast_signed()
}

fn failed_footprint(failure: &Failure) -> isize {
    let bytes = match failure {
        Failure::Refused(ScriptError::Thrown { message, data, code, at }) => {
            message.capacity()
                + at.capacity()
                + data.as_ref().map_or(0, |data| data.as_str().len())
                + code.as_ref().map_or(0, String::capacity)
        }
        Failure::Refused(ScriptError::NotForScripts(why)) | Failure::Broke(why) | Failure::Tripped(why) => why.capacity(),
        Failure::Refused(_) => 0,
    };
    bytes.cast_signed()
}
