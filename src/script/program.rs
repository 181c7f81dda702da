//! A plugin ready to be compiled on any thread: its text, the expressions of the routes file that belong to it, and how each
//! function is called. Compiling is here too; checking is in [`super::check`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rhai::{AST, Engine, EvalAltResult, Module, ModuleResolver, Position, Scope, Shared};

use super::budget;
use super::call::FunctionOut;
use super::engine::{self, FUNCTIONS_MAX};
use super::health::Health;
use super::host::failure;
use super::service::Service;
use super::state::{Body, State};
use super::wanted::Wanted;
use crate::config::plan::{PluginSource, Role, SourceSpan};
use crate::model::PluginName;

/// The prefix of our own functions: the expressions of the routes file.
pub(super) const EXPRESSION_PREFIX: &str = "tramline_expression_";

/// All plugins of one loading.
pub(super) type Programs = BTreeMap<PluginName, Arc<Program>>;

/// The functions of a plugin that the routes file uses, and how.
pub(super) type Uses = BTreeSet<(Arc<str>, Role)>;

/// One plugin.
pub(super) struct Program {
    /// Unlike that of any other: a thread that has compiled it need not do so for the next loading.
    pub(super) id: u64,
    pub(super) uses: Uses,
    pub(super) name: PluginName,
    pub(super) file: Arc<str>,
    /// The plugin's text, followed by one function for each expression.
    pub(super) text: Arc<str>,
    pub(super) expressions: Vec<Expression>,
    /// By the name the routes file uses.
    pub(super) entries: HashMap<Arc<str>, Entry>,
    /// As people read them: `page(msg)`.
    pub(super) functions: Vec<String>,
    /// The parameters and bodies of its functions, by name.
    pub(super) definitions: BTreeMap<Box<str>, Box<str>>,
    pub(super) hash: String,
    /// All it imports, directly or not.
    pub(super) imports: BTreeSet<PluginName>,
    pub(super) sources: Arc<Sources>,
    pub(super) health: Arc<Health>,
}

/// The texts of all plugins: what can be imported.
pub(super) type Sources = BTreeMap<PluginName, PluginSource>;

/// An expression of the routes file as a function behind the plugin's text.
pub(super) struct Expression {
    /// Its first line and the one after its last, in the whole text.
    pub(super) lines: std::ops::Range<usize>,
    /// Its place in the routes file.
    pub(super) at: SourceSpan,
}

/// A function that may be called.
pub(super) struct Entry {
    /// Its place in [`Loaded::called`].
    pub(super) number: usize,
    /// Its name in the text.
    pub(super) function: String,
    /// Its parameters when it is called about a message.
    pub(super) message: Option<Vec<Parameter>>,
    /// Its parameters when it is called about an event that goes out.
    pub(super) deliver: Option<Vec<Parameter>>,
    /// Whether it may ask about the world: members, history and the like.
    pub(super) asks: bool,
    /// Whether it is called.
    pub(super) service: Arc<Service>,
}

impl Entry {
    /// How many parameters it has. None: it has several forms.
    fn arity(&self) -> Option<usize> {
        match (self.message.as_ref().map(Vec::len), self.deliver.as_ref().map(Vec::len)) {
            (Some(message), Some(deliver)) if message != deliver => None,
            (message, deliver) => message.or(deliver),
        }
    }

    /// Whether it is an expression of the routes file.
    pub(super) fn is_expression(&self) -> bool {
        self.function.starts_with(EXPRESSION_PREFIX)
    }
}

/// A parameter of a function.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) is: Param,
    pub(super) wanted: Wanted,
}

impl From<Param> for Parameter {
    fn from(is: Param) -> Self {
        Self { is, wanted: Wanted::All }
    }
}

/// What a parameter gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Param {
    Conn,
    Msg,
    Kind,
    Data,
    Event,
    Sub,
}

impl Param {
    /// By the names expressions use.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "conn" => Param::Conn,
            "msg" => Param::Msg,
            "kind" | "type" => Param::Kind,
            "data" => Param::Data,
            "event" => Param::Event,
            "sub" => Param::Sub,
            _ => return None,
        })
    }
}

/// A program on one thread.
pub(super) struct Loaded {
    /// That of the program.
    pub(super) id: u64,
    pub(super) engine: Engine,
    pub(super) ast: AST,
    /// None: every call has one of its own.
    pub(super) state: RefCell<Option<State>>,
    /// The functions that are called from outside, by their numbers.
    pub(super) called: Vec<Called>,
}

/// A function on one thread that is called from outside.
pub(super) struct Called {
    /// None: the engine looks for it at each call.
    pub(super) body: Option<Body>,
    /// What its calls left behind on this thread, in bytes.
    pub(super) leaked: Cell<isize>,
}

impl Program {
    /// Whether checking would lead to this very program.
    pub(super) fn is_as(&self, sources: &Sources, uses: &Uses) -> bool {
        let same = |name: &PluginName| {
            let (before, now) = (self.sources.get(name), sources.get(name));
            before.zip(now).is_some_and(|(before, now)| before.text == now.text && before.file == now.file)
        };
        self.expressions.is_empty() && self.uses == *uses && same(&self.name) && self.imports.iter().all(same)
    }

    /// Continues the counts of another loading of the plugin. If everything it calls is the same, its functions are in service
    /// as they were.
    pub(super) fn take_over(&mut self, before: &Program) {
        self.health = before.health.clone();
        if self.hash != before.hash {
            return;
        }
        for (name, entry) in self.entries.iter_mut().filter(|(_, entry)| !entry.is_expression()) {
            if let Some(before) = before.entries.get(name).filter(|before| !before.is_expression()) {
                entry.service = before.service.clone();
            }
        }
    }

    /// The functions the routes file uses.
    pub(super) fn called(&self) -> Vec<Arc<str>> {
        let mut called: Vec<_> = self.entries.iter().filter(|(_, entry)| !entry.is_expression()).map(|(name, _)| name.clone()).collect();
        called.sort();
        called
    }

    /// What of it is out of service.
    pub(super) fn out(&self) -> Vec<FunctionOut> {
        let out = |(name, entry): (&Arc<str>, &Entry)| {
            let (since_ms, why) = entry.service.out()?;
            Some(FunctionOut { function: self.shown(name, entry), since_ms, why })
        };
        let mut out: Vec<_> = self.entries.iter().filter_map(out).collect();
        out.sort_by(|a, b| a.function.cmp(&b.function));
        out
    }

    /// The name of a function for people: of an expression its place.
    fn shown(&self, name: &str, entry: &Entry) -> String {
        let number = entry.function.strip_prefix(EXPRESSION_PREFIX).and_then(|number| number.parse::<usize>().ok());
        let expression = number.and_then(|number| self.expressions.get(number));
        expression.map_or_else(|| name.to_owned(), |expression| expression.at.location.to_string())
    }

    /// Compiles on this thread. Fails only if checking would have failed.
    pub(super) fn load(&self) -> Result<Loaded, Box<EvalAltResult>> {
        let mut engine = engine::new(Imports::new(self.sources.clone()));
        engine.set_max_functions(FUNCTIONS_MAX + self.expressions.len());
        // Functions do not see the constants at the top. Texts and numbers are inserted when the text is compiled; for lists and
        // objects the engine looks here.
        let mut top = Module::new();
        for source in self.imports.iter().filter_map(|name| self.sources.get(name)) {
            for (name, _, value) in constants(&engine, &parse(&engine, &source.text)?, &source.file)?.iter() {
                top.set_var(name, value);
            }
        }
        let scope = constants(&engine, &parse(&engine, &self.text)?, &self.file)?;
        for (name, _, value) in scope.iter() {
            top.set_var(name, value);
        }
        engine.register_global_module(top.into());
        let mut ast = engine.compile_with_scope(&scope, &self.text)?;
        ast.set_source(&*self.file);
        let keeps_state = self.imports.is_empty();
        let state = RefCell::new(keeps_state.then(|| State::new(&engine, &ast)));
        let called = |entry: &Entry| {
            let body = if keeps_state { entry.arity().and_then(|arity| Body::of(&ast, &entry.function, arity)) } else { None };
            Called { body, leaked: Cell::new(0) }
        };
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.number);
        let called = entries.into_iter().map(called).collect();
        Ok(Loaded { id: self.id, engine, ast, state, called })
    }
}

/// Compiles a text with the values of its constants. `parsed`: the same text.
pub(super) fn compile(engine: &Engine, parsed: &AST, text: &str, file: &str) -> Result<AST, Box<EvalAltResult>> {
    let scope = constants(engine, parsed, file)?;
    let mut ast = engine.compile_with_scope(&scope, text)?;
    ast.set_source(file);
    Ok(ast)
}

/// Runs the top of a text: constants and imports. The checks allow nothing else there.
fn constants(engine: &Engine, parsed: &AST, file: &str) -> Result<Scope<'static>, Box<EvalAltResult>> {
    let mut top = parsed.clone_statements_only();
    let mut scope = Scope::new();
    if !top.statements().is_empty() {
        top.set_source(file);
        let running = budget::begin().inspect(budget::Running::start_clock);
        let ran = engine.run_ast_with_scope(&mut scope, &top);
        if let Some(trip) = running.as_ref().and_then(budget::Running::trip) {
            let mut error = failure(format!("the constants at the top: {}", trip.why()));
            error.set_position(ran.err().map_or(Position::NONE, |e| e.position()));
            return Err(error);
        }
        ran?;
    }
    Ok(scope)
}

/// Parses without asking whether variables exist: constants are not known yet.
pub(super) fn parse(limits: &Engine, text: &str) -> Result<AST, rhai::ParseError> {
    let mut parser = Engine::new_raw();
    parser.set_optimization_level(rhai::OptimizationLevel::None);
    parser.disable_symbol("eval");
    parser.set_max_expr_depths(limits.max_expr_depth(), limits.max_function_expr_depth());
    parser.set_max_functions(limits.max_functions());
    parser.set_max_string_size(limits.max_string_size());
    parser.set_max_array_size(limits.max_array_size());
    parser.set_max_map_size(limits.max_map_size());
    parser.compile(text)
}

/// Resolves imports of scripts: other plugins by their plain names, from texts already read. It opens no file.
pub(super) struct Imports {
    sources: Arc<Sources>,
    ready: RefCell<HashMap<String, Shared<Module>>>,
    /// Being compiled now: an import that leads back is refused.
    open: RefCell<Vec<String>>,
}

impl Imports {
    pub(super) fn new(sources: Arc<Sources>) -> Self {
        Self { sources, ready: RefCell::default(), open: RefCell::default() }
    }

    fn compile(&self, engine: &Engine, name: &str) -> Result<Shared<Module>, Box<EvalAltResult>> {
        let missing = || EvalAltResult::ErrorModuleNotFound(name.to_owned(), Position::NONE);
        let source = self.sources.get(name).ok_or_else(missing)?;
        let ast = compile(engine, &parse(engine, &source.text)?, &source.text, &source.file)?;
        Ok(Module::eval_ast_as_new(Scope::new(), &ast, engine)?.into())
    }
}

impl ModuleResolver for Imports {
    fn resolve(
        &self,
        engine: &Engine,
        _source: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        if let Some(module) = self.ready.borrow().get(path) {
            return Ok(module.clone());
        }
        if self.open.borrow().iter().any(|open| open == path) {
            let why = "it leads back to itself".into();
            return Err(EvalAltResult::ErrorInModule(path.to_owned(), why, position).into());
        }
        self.open.borrow_mut().push(path.to_owned());
        let module = self.compile(engine, path);
        self.open.borrow_mut().pop();
        let module = module.map_err(|mut e| {
            e.set_position(position);
            e
        })?;
        self.ready.borrow_mut().insert(path.to_owned(), module.clone());
        Ok(module)
    }
}
