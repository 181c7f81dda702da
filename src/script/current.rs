//! The call that runs on this thread: its function and its effects so far. Host functions read and write it.
//!
//! Registered functions outlive a call, so what belongs to one call reaches them through a thread-local.

use std::cell::RefCell;
use std::sync::Arc;

use rhai::{Dynamic, EvalAltResult};

use super::call::{ScriptEffect, World};
use super::engine::{EFFECTS_MAX, OUTPUT_BYTES_MAX};
use super::health::Health;
use super::host::failure;
use super::{budget, convert};
use crate::model::{Json, Now, PluginName};
use crate::telemetry::memory::thread_live_bytes;

/// What the running call may do and has done.
pub(super) struct Current {
    pub(super) now: Now,
    pub(super) plugin: PluginName,
    /// None: the call is a trial, which writes no log lines.
    pub(super) health: Option<Arc<Health>>,
    pub(super) world: Arc<dyn World>,
    /// Whether it may have effects. Conditions and rendering must not.
    pub(super) may_act: bool,
    pub(super) effects: Vec<ScriptEffect>,
    pub(super) output_left: usize,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Holds while a call runs. Dropping it forgets the call and what it asked for.
pub(super) struct Entered(());

pub(super) fn enter(current: Current) -> Entered {
    CURRENT.with(|cell| *cell.borrow_mut() = Some(current));
    Entered(())
}

impl Entered {
    /// Ends the call and returns its effects.
    pub(super) fn finish(self) -> Option<Current> {
        CURRENT.with(|cell| cell.borrow_mut().take())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        drop(CURRENT.with(|cell| cell.borrow_mut().take()));
    }
}

type Result<T> = std::result::Result<T, Box<EvalAltResult>>;

/// Runs `f` with the running call. `f` must not call back into the engine.
pub(super) fn with<T>(f: impl FnOnce(&mut Current) -> Result<T>) -> Result<T> {
    CURRENT.with(|cell| match cell.borrow_mut().as_mut() {
        Some(current) => f(current),
        None => Err(failure("only functions may call this, not the constants of a plugin")),
    })
}

/// Asks the world and reads its answer, without keeping the call borrowed meanwhile. What the world keeps of asking, like
/// counters of shared texts, is not the script's.
pub(super) fn ask<A, T>(what: &str, ask: impl FnOnce(&dyn World, Now) -> A, read: impl FnOnce(&A) -> Result<T>) -> Result<T> {
    let (world, now) = with(|current| Ok((current.world.clone(), current.now)))?;
    if !world.may_be_asked() {
        return Err(failure(format!("{what}: `deliver` and `when` of `batch` may not ask about the rest of the router")));
    }
    budget::host_work(|| {
        let before = thread_live_bytes();
        let answer = ask(&*world, now);
        let asked = thread_live_bytes();
        let read = read(&answer);
        let ours = thread_live_bytes() - asked;
        drop(answer);
        budget::excuse(thread_live_bytes() - before - ours);
        read
    })
}

/// Fails where the call may have no effects.
pub(super) fn may_act(what: &str) -> Result<()> {
    with(|current| current.check_may_act(what))
}

impl Current {
    fn check_may_act(&self, what: &str) -> Result<()> {
        if self.may_act { Ok(()) } else { Err(failure(format!("{what}: conditions, `validate` and `deliver` may not change anything"))) }
    }

    /// Records an effect.
    pub(super) fn push(&mut self, what: &str, effect: ScriptEffect) -> Result<()> {
        self.check_may_act(what)?;
        if self.effects.len() >= EFFECTS_MAX {
            return Err(failure(format!("{what}: one call may ask for at most {EFFECTS_MAX} effects")));
        }
        self.effects.push(effect);
        Ok(())
    }

    /// JSON of a value that leaves the script, counted.
    pub(super) fn json(&mut self, what: &str, value: &Dynamic) -> Result<Json> {
        let json = self.output(value).map_err(|why| failure(format!("{what}: {why}")))?;
        Ok(json)
    }

    /// Likewise, for the value of the call itself.
    pub(super) fn output(&mut self, value: &Dynamic) -> std::result::Result<Json, String> {
        self.counted(|bytes_max| Ok((convert::to_json(value, bytes_max)?, ()))).map(|(json, ())| json)
    }

    /// Likewise, for JSON that `write` makes, of at most so many bytes.
    pub(super) fn counted<T>(
        &mut self,
        write: impl FnOnce(usize) -> std::result::Result<(Json, T), String>,
    ) -> std::result::Result<(Json, T), String> {
        let (json, more) = write(self.output_left)?;
        self.output_left = self.output_left.saturating_sub(json.as_str().len());
        Ok((json, more))
    }
}

/// The room for output a call begins with.
pub(super) const OUTPUT_ROOM: usize = OUTPUT_BYTES_MAX;
