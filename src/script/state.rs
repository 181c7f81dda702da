//! What the engine works out anew at every call unless it is kept: its state, and above all which function a call means.
//!
//! The engine's own way to call makes both afresh. Here they are kept beside the syntax tree they belong to, and given to the
//! engine again, as if the call came from within a script. What a call left in them besides is taken out before the next; a call
//! that panics or asks for too many functions takes them with it.

use rhai::{AST, Caches, CallFnOptions, Dynamic, Engine, EvalAltResult, EvalContext, GlobalRuntimeState, Scope};

/// Calls that the engine counts to come here: it takes the function that is called for one that another calls.
pub(super) const LEVELS: usize = 2;

/// Functions that are kept for the calls to come. A script that makes up names asks for more.
const FOUND_MAX: usize = 1024;

/// The engine's state between calls.
pub(super) struct State {
    global: GlobalRuntimeState,
    found: Caches,
}

impl State {
    pub(super) fn new(engine: &Engine, ast: &AST) -> Self {
        let mut global = engine.new_global_runtime_state();
        global.lib.push(ast.shared_lib().clone());
        Self { global, found: Caches::new() }
    }

    fn is_small(&mut self) -> bool {
        self.found.fn_resolution_cache_mut().dict.len() <= FOUND_MAX
    }

    /// As it was made, but for what was found.
    fn reset(&mut self) {
        let global = &mut self.global;
        global.lib.truncate(1);
        global.truncate_imports(0);
        (global.num_operations, global.num_modules_loaded) = (0, 0);
        (global.level, global.scope_level, global.always_search_scope) = (0, 0, false);
        (global.source, global.embedded_module_resolver, global.constants) = (None, None, None);
        global.tag = Dynamic::UNIT;
        self.found.rewind_fn_resolution_caches(1);
    }

    /// Calls a function with arguments, which are taken out.
    fn call(&mut self, engine: &Engine, function: &str, arguments: &mut [Dynamic]) -> Result<Dynamic, Box<EvalAltResult>> {
        self.reset();
        let mut scope = Scope::new();
        let mut arguments: Vec<&mut Dynamic> = arguments.iter_mut().collect();
        let mut context = EvalContext::new(engine, &mut self.global, &mut self.found, &mut scope, None);
        context.call_fn_raw(function, false, false, &mut arguments).or_else(|error| match *error {
            EvalAltResult::Exit(value, _) => Ok(value),
            // The engine's own way leaves this out too: the function is known.
            EvalAltResult::ErrorInFunctionCall(name, _, inner, _) if name == function => Err(inner),
            _ => Err(error),
        })
    }
}

/// Calls a function of a plugin: with the state of the calls before, or else, where the plugin imports others, with one of its own.
pub(super) fn call(
    engine: &Engine,
    ast: &AST,
    state: &std::cell::RefCell<Option<State>>,
    function: &str,
    mut arguments: Vec<Dynamic>,
) -> Result<Dynamic, Box<EvalAltResult>> {
    // Taken out meanwhile: where a panic passes, it is gone.
    let Some(mut kept) = state.take() else {
        let options = CallFnOptions::new().eval_ast(true);
        return engine.call_fn_with_options(options, &mut Scope::new(), ast, function, arguments);
    };
    let result = kept.call(engine, function, &mut arguments);
    if !kept.is_small() {
        kept = State::new(engine, ast);
    }
    state.replace(Some(kept));
    result
}
