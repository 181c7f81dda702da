//! The one place where script engines are made and every limit is set. Nothing here is left to a default of the engine's.
//!
//! An engine belongs to one thread (the engine is built without `sync`, which dead-locks on closures that hold themselves).

use std::time::Duration;

use rhai::packages::{
    ArithmeticPackage, BasicArrayPackage, BasicFnPackage, BasicIteratorPackage, BasicMapPackage, BasicMathPackage, BasicStringPackage,
    LanguageCorePackage, LogicPackage, MoreStringPackage,
};
use rhai::{Engine, OptimizationLevel, def_package};

use super::{budget, host, overrides};

/// Operations of one call, call-backs included.
pub(super) const OPERATIONS_MAX: u32 = 50_000;
/// CPU time of one call: other work of the machine does not count.
pub(super) const TIME_MAX: Duration = Duration::from_millis(20);
/// Wall time of one call, in case it waits for something.
pub(super) const WALL_TIME_MAX: Duration = Duration::from_secs(2);
/// Time the host may take to answer one call without it counting as the script's.
pub(super) const HOST_TIME_MAX: Duration = Duration::from_millis(200);
/// Memory one call may hold at a time.
pub(super) const MEMORY_BYTES_MAX: isize = 32 << 20;
/// The clock is read once in so many operations …
pub(super) const CLOCK_EVERY: u32 = 256;
/// … and at each one while a call holds more than this: then a single operation may take long.
pub(super) const CLOCK_ALWAYS_BYTES: isize = 256 << 10;
/// Calls within calls.
const LEVELS_MAX: usize = 32;
/// Bytes of text within one value. The engine adds up all texts within a value, so this is also what one message may hold.
pub(super) const TEXT_BYTES_MAX: usize = 1 << 20;
/// Array items within one value, those of nested arrays included.
pub(super) const ITEMS_MAX: usize = 20_000;
/// Object members within one value, those of nested objects included.
pub(super) const MEMBERS_MAX: usize = 200_000;
/// Variables at one time.
const VARIABLES_MAX: usize = 256;
/// Functions of a plugin.
pub(super) const FUNCTIONS_MAX: usize = 200;
/// Imports of a plugin.
pub(super) const MODULES_MAX: usize = 16;
/// Depth of an expression. The same in debug and release builds.
const EXPRESSION_DEPTH_MAX: usize = 32;
/// What one call may send, join, leave and publish.
pub(super) const EFFECTS_MAX: usize = 64;
/// Bytes of JSON one call may give, its result and its effects together.
pub(super) const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Log lines of one plugin in a second. More are counted.
pub(super) const LOG_LINES_PER_SECOND_MAX: u32 = 20;
/// Bytes of one log line.
pub(super) const LOG_LINE_BYTES_MAX: usize = 1024;
/// Compiled regular expressions each thread keeps.
pub(super) const REGEX_CACHE_MAX: usize = 64;
/// Bytes of one compiled regular expression.
pub(super) const REGEX_BYTES_MAX: usize = 256 << 10;
/// Memory the arguments of one call may take. The script needs some besides.
pub(super) const ARGUMENT_BYTES_MAX: isize = 16 << 20;
/// Calls in a row over a budget that take a function out of service …
pub(super) const TRIPS_MAX: u32 = 10;
/// … if so many senders caused them.
pub(super) const TRIPPING_SENDERS_MIN: usize = 3;
/// How long a function is out of service at first. Twice as long each time it fails the call it is then tried with …
pub(super) const PAUSE_MIN: Duration = Duration::from_secs(1);
/// … up to this.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Memory calls of one function may leave behind on one thread: a closure that holds itself is never freed.
pub(super) const LEAK_BYTES_MAX: isize = 8 << 20;
/// Calls over a budget that one sender may cause at a time …
pub(super) const SENDER_TRIPS_MAX: u32 = 5;
/// … and the time after which it may cause one more.
pub(super) const SENDER_TRIP_EVERY: Duration = Duration::from_secs(10);
/// Refused messages after which a connection is closed. One of them is forgotten in a tenth of that time.
pub(super) const SENDER_REFUSED_MAX: u32 = 50;
/// Senders whose spending is remembered. Senders beyond that are not refused.
pub(super) const SENDERS_MAX: usize = 100_000;

def_package! {
    /// The parts of the engine's own library that scripts may use. Left out: files, processes, blobs, bit fields, clocks that
    /// block.
    Library(module) : LanguageCorePackage, ArithmeticPackage, LogicPackage, BasicStringPackage, MoreStringPackage, BasicIteratorPackage,
        BasicFnPackage, BasicMathPackage, BasicArrayPackage, BasicMapPackage {}
}

/// An engine with every limit set. `resolver` finds what scripts import.
pub(super) fn new(resolver: impl rhai::ModuleResolver + 'static) -> Engine {
    use rhai::packages::Package;
    thread_local! { static LIBRARY: Library = Library::new(); }

    let mut engine = Engine::new_raw();
    LIBRARY.with(|library| {
        library.register_into_engine(&mut engine);
    });
    engine.set_module_resolver(resolver);
    engine.set_optimization_level(OptimizationLevel::Simple);
    engine.set_strict_variables(true);
    engine.disable_symbol("eval");

    // Our own count includes call-backs and comes first; this one is there in case it fails.
    engine.set_max_operations(u64::from(OPERATIONS_MAX) + 1);
    engine.set_max_call_levels(LEVELS_MAX);
    engine.set_max_string_size(TEXT_BYTES_MAX);
    engine.set_max_array_size(ITEMS_MAX);
    engine.set_max_map_size(MEMBERS_MAX);
    engine.set_max_variables(VARIABLES_MAX);
    engine.set_max_functions(FUNCTIONS_MAX);
    engine.set_max_modules(MODULES_MAX);
    engine.set_max_expr_depths(EXPRESSION_DEPTH_MAX, EXPRESSION_DEPTH_MAX);
    engine.set_max_strings_interned(1024);
    engine.on_progress(|_| budget::spend());

    overrides::register(&mut engine);
    host::register(&mut engine);
    engine
}
