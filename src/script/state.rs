//! What the engine would compute again at every call: its state, and above all which function a call means.
//!
//! The engine's own way to call makes both afresh. Here they are kept beside the syntax tree they belong to, and given to the
//! engine again. What a call left in them besides is taken out before the next; a call that panics or asks for too many functions
//! takes them with it.
//!
//! A function that is called from outside is evaluated here, statement by statement, because the engine forgets at the border of
//! each function where in it a limit was hit.

use rhai::{AST, ASTNode, Caches, CallFnOptions, Dynamic, Engine, EvalAltResult, GlobalRuntimeState, ImmutableString, Scope, Stmt};

/// Resolved functions that are kept for later calls. Only a script that invents names needs more.
const FOUND_MAX: usize = 1024;

/// The engine's state between calls.
pub(super) struct State {
    global: GlobalRuntimeState,
    found: Caches,
}

/// A function's parameters and statements.
pub(super) struct Body {
    parameters: Vec<ImmutableString>,
    statements: Vec<Stmt>,
}

impl Body {
    /// None: the plugin has no such function, or several forms of it.
    pub(super) fn of(ast: &AST, function: &str, arity: usize) -> Option<Self> {
        let mut one = ast.clone();
        one.clear_statements().retain_functions(|_, _, name, parameters| name == function && parameters == arity);
        let mut functions = one.iter_functions();
        let (Some(found), None) = (functions.next(), functions.next()) else { return None };
        let parameters = found.params.iter().map(|name| ImmutableString::from(*name)).collect();
        let mut statements = Vec::new();
        one.walk(&mut |path| {
            if let [ASTNode::Stmt(statement)] = path {
                statements.push((*statement).clone());
            }
            true
        });
        Some(Self { parameters, statements })
    }
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

    /// Unchanged since it was made, except for the functions found.
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

    /// Evaluates a function with these arguments.
    fn call(&mut self, engine: &Engine, body: &Body, arguments: Vec<Dynamic>) -> Result<Dynamic, Box<EvalAltResult>> {
        self.reset();
        let mut scope = Scope::new();
        for (name, value) in body.parameters.iter().zip(arguments) {
            scope.push_dynamic(name.clone(), value);
        }
        #[expect(deprecated, reason = "the only way to evaluate statements with a state that is kept; the engine's version is pinned")]
        engine.eval_statements_raw(&mut self.global, &mut self.found, &mut scope, &body.statements)
    }
}

/// Calls a function of a plugin: with the state of the calls before, or else, where the plugin imports others, with one of its
/// own.
pub(super) fn call(
    engine: &Engine,
    ast: &AST,
    state: &std::cell::RefCell<Option<State>>,
    (function, body): (&str, Option<&Body>),
    arguments: Vec<Dynamic>,
) -> Result<Dynamic, Box<EvalAltResult>> {
    // Taken out during the call, so that it is lost if the call panics.
    let (Some(body), Some(mut kept)) = (body, state.take()) else {
        let options = CallFnOptions::new().eval_ast(true);
        return engine.call_fn_with_options(options, &mut Scope::new(), ast, function, arguments);
    };
    let result = kept.call(engine, body, arguments);
    if !kept.is_small() {
        kept = State::new(engine, ast);
    }
    state.replace(Some(kept));
    result
}
