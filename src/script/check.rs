//! Turns the texts of plugins and their uses in the routes file into programs, and reports every mistake in them.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rhai::{AST, Engine, EvalAltResult, ParseError, Position};
use sha2::{Digest, Sha256};

use super::asks::Asking;
use super::engine::{self, MODULES_MAX};
use super::error::{COMPARE, meant, parsing, plain};
use super::health::Health;
use super::program::{EXPRESSION_PREFIX, Entry, Expression, Imports, Param, Parameter, Program, Programs, Sources, Uses, compile, parse};
use super::service::Service;
use super::{library, outline, walk, wanted};
use crate::config::diagnostic::Diagnostic;
use crate::config::plan::{ExpressionUse, FunctionUse, PluginSource, Plugins, Role, SourceSpan};
use crate::model::{PluginName, SourceLocation};

/// The diagnostics of scripts.
pub const CODES: &[(&str, &str)] = &[
    ("S001", "a script that does not compile, or a constant at its top that cannot be computed"),
    ("S002", "a function that its plugin does not have"),
    ("S003", "a function whose parameters do not fit its use in the routes file"),
    ("S004", "a script that calls an unknown function"),
    ("S005", "a plugin that does not exist"),
    ("S006", "an import that is not allowed: only other plugins, by a literal name, at the top of the file, and not in a circle"),
    ("S007", "a script that redefines a function of the host"),
    ("S008", "something other than a function, constant or import at the top of a script"),
    ("S009", "an expression in the routes file that is not valid"),
];

/// Checks everything. Programs are there for all plugins that compile. What is used as before, of the same texts, is what it was
/// in `previous`; what is not continues the counts of that.
pub(super) fn check(
    plugins: &Plugins,
    functions: &[FunctionUse],
    expressions: &[ExpressionUse],
    previous: &Programs,
) -> (Programs, Vec<Diagnostic>) {
    let sources = Arc::new(plugins.sources.clone());
    let mut found = Vec::new();
    let mut used: HashMap<&str, Uses> = HashMap::new();
    for use_ in functions {
        used.entry(&use_.function.plugin).or_default().insert((use_.function.name.clone(), use_.role));
    }
    let mut programs: Programs = BTreeMap::new();
    for (name, program) in previous {
        let has_expressions = expressions.iter().any(|expression| expression.function.plugin == *name);
        let uses = used.get(&**name).unwrap_or(const { &Uses::new() });
        if !has_expressions && program.is_as(&sources, uses) {
            programs.insert(name.clone(), program.clone());
        }
    }
    let trees = Trees::of(&sources);
    let mut asts: HashMap<PluginName, AST> = HashMap::new();
    for source in sources.values().filter(|source| !programs.contains_key(&source.name)) {
        if let Some(ast) = plugin(&trees, source, &mut found) {
            asts.insert(source.name.clone(), ast);
        }
    }
    // A plugin that exists in expressions only has no file and no functions of its own.
    let names: BTreeSet<PluginName> = sources.keys().chain(expressions.iter().map(|e| &e.function.plugin)).cloned().collect();
    for name in names {
        if programs.contains_key(&name) {
            continue;
        }
        let none = PluginSource { name: name.clone(), file: format!("plugins/{name}.rhai").into(), text: "".into() };
        let source = sources.get(&name).unwrap_or(&none);
        let ast = match asts.remove(&name) {
            Some(ast) => ast,
            None if sources.contains_key(&name) => continue,
            None => AST::empty(),
        };
        let uses: Vec<&FunctionUse> = functions.iter().filter(|u| u.function.plugin == name).collect();
        let own: Vec<&ExpressionUse> = expressions.iter().filter(|e| e.function.plugin == name).collect();
        let mut program = program(&trees, source, &ast, &uses, &own, &mut found);
        if let Some(before) = previous.get(&name) {
            program.take_over(before);
        }
        programs.insert(name, Arc::new(program));
    }
    for use_ in functions.iter().filter(|u| !sources.contains_key(&u.function.plugin)) {
        let name = &use_.function.plugin;
        let near = nearest(name, sources.keys().map(|key| &**key)).map(|near| format!("did you mean `{near}`?"));
        let hint = near.unwrap_or_else(|| format!("there should be a file `plugins/{name}.rhai` next to the routes file"));
        found.push(Diagnostic::new("S005", use_.at.clone(), format!("there is no plugin `{name}`")).hint(hint));
    }
    (programs, found)
}

/// Checks one plugin by itself.
fn plugin(trees: &Trees, source: &PluginSource, found: &mut Vec<Diagnostic>) -> Option<AST> {
    let engine = engine::new(Imports::new(trees.sources.clone()));
    let before = found.len();
    let parsed = match trees.parsed(&source.name)? {
        Ok(tree) => &tree.ast,
        Err(e) => {
            found.push(hinted(at("S001", &source.file, e.position(), parsing(e.err_type())), meant(e.err_type())));
            return None;
        }
    };
    walk::check(&engine, parsed, source, &trees.sources, found);
    circle(source, trees, found);
    if found.len() > before {
        return None;
    }
    let compiled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compile(&engine, parsed, &source.text, &source.file)));
    match compiled {
        Ok(Ok(ast)) => Some(ast),
        Ok(Err(e)) => {
            found.push(compile_error(source, *e));
            None
        }
        Err(_) => {
            found.push(at("S001", &source.file, Position::NONE, "the script engine panicked"));
            None
        }
    }
}

fn compile_error(source: &PluginSource, error: EvalAltResult) -> Diagnostic {
    at("S001", &source.file, error.position(), plain(&error))
}

/// A plugin that imports itself, directly or not, would never load.
fn circle(source: &PluginSource, trees: &Trees, found: &mut Vec<Diagnostic>) {
    let reached = trees.closure(&source.name);
    if reached.len() > MODULES_MAX {
        found.push(at("S006", &source.file, Position::NONE, format!("more than {MODULES_MAX} imports, those of imports included")));
    }
    let mut named: HashMap<String, Arc<str>> = HashMap::new();
    for file in reached.iter().filter(|name| **name != source.name).filter_map(|name| trees.sources.get(name)).chain([source]) {
        for name in trees.get(&file.name).into_iter().flat_map(|tree| tree.constants.clone()) {
            if let Some(other) = named.insert(name.clone(), file.file.clone()) {
                let message = format!("the constant `{name}` is defined in {other} and in {}", file.file);
                found.push(at("S006", &source.file, Position::NONE, message).hint("give one of them another name"));
            }
        }
    }
    if reached.contains(&source.name) {
        found.push(at("S006", &source.file, Position::NONE, format!("`{}` imports itself through its imports", source.name)));
    }
}

/// The plugins, each parsed at most once for all that is checked.
struct Trees {
    sources: Arc<Sources>,
    engine: Engine,
    by_name: HashMap<PluginName, OnceCell<Result<Tree, ParseError>>>,
}

/// A plugin as it is written: nothing is optimised.
struct Tree {
    ast: AST,
    /// The names of what it imports.
    imports: Vec<String>,
    /// The names at its top.
    constants: Vec<String>,
}

impl Trees {
    fn of(sources: &Arc<Sources>) -> Self {
        let by_name = sources.keys().map(|name| (name.clone(), OnceCell::new())).collect();
        Self { sources: sources.clone(), engine: engine::new(Imports::new(sources.clone())), by_name }
    }

    /// None: there is no such plugin.
    fn parsed(&self, name: &str) -> Option<&Result<Tree, ParseError>> {
        let source = self.sources.get(name)?;
        let tree = || {
            let ast = parse(&self.engine, &source.text)?;
            Ok(Tree { imports: walk::imports(&ast), constants: walk::constants(&ast), ast })
        };
        Some(self.by_name.get(name)?.get_or_init(tree))
    }

    fn get(&self, name: &str) -> Option<&Tree> {
        self.parsed(name)?.as_ref().ok()
    }

    /// All that a plugin imports, directly or not.
    fn closure(&self, name: &str) -> BTreeSet<PluginName> {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&Tree> = self.get(name).into_iter().collect();
        while let Some(tree) = open.pop() {
            for name in &tree.imports {
                if let Some(name) = self.by_name.get_key_value(&**name).map(|(name, _)| name)
                    && reached.insert(name.clone())
                {
                    open.extend(self.get(name));
                }
            }
        }
        reached
    }
}

/// How many programs there have been.
static PROGRAMS: AtomicU64 = AtomicU64::new(0);

/// Adds the expressions and determines how each function is called.
fn program(
    trees: &Trees,
    source: &PluginSource,
    ast: &AST,
    uses: &[&FunctionUse],
    own: &[&ExpressionUse],
    found: &mut Vec<Diagnostic>,
) -> Program {
    let sources = &trees.sources;
    let engine = engine::new(Imports::new(sources.clone()));
    let mut entries = HashMap::new();
    let mut expressions = Vec::new();
    let mut text = source.text.to_string();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for (i, expression) in own.iter().enumerate() {
        let function = format!("{EXPRESSION_PREFIX}{i}");
        if let Some(diagnostic) = wrong_expression(&engine, ast, source, expression) {
            found.push(diagnostic);
            continue;
        }
        let first = text.lines().count() + 1;
        text.push_str(&wrapped(&function, expression));
        let lines = Range { start: first, end: text.lines().count() + 1 };
        expressions.push(Expression { lines, at: expression.at.clone() });
        let params: Option<Vec<Param>> = expression.parameters.iter().map(|name| Param::by_name(name)).collect();
        let params: Option<Vec<Parameter>> = params.map(|params| params.into_iter().map(Parameter::from).collect());
        let service = Service::of_expression(&source.name, &expression.function.name);
        let (number, message) = (entries.len(), params.clone());
        let entry = Entry { number, function, message, deliver: params, asks: true, service };
        entries.insert(expression.function.name.clone(), entry);
    }
    for use_ in uses {
        match entry(ast, use_) {
            Ok(params) => {
                let name = &use_.function.name;
                let (number, function) = (entries.len(), name.to_string());
                let service = || Service::of_function(&source.name, name);
                let new = || Entry { number, function, message: None, deliver: None, asks: true, service: service() };
                let entry = entries.entry(name.clone()).or_insert_with(new);
                *(if use_.role == Role::Deliver { &mut entry.deliver } else { &mut entry.message }) =
                    Some(params.into_iter().map(Parameter::from).collect());
            }
            Err(diagnostic) => found.push(diagnostic),
        }
    }
    let mut functions: Vec<String> = ast
        .iter_functions()
        .filter(|f| f.access == rhai::FnAccess::Public && !f.name.starts_with("anon$"))
        .map(|f| format!("{}({})", f.name, f.params.join(", ")))
        .collect();
    functions.sort();
    let imports = trees.closure(&source.name);
    let mut hash = Sha256::new();
    hash.update(source.text.as_bytes());
    for name in &imports {
        hash.update([0]);
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(sources.get(name).map_or("", |source| &source.text));
    }
    let tree = trees.get(&source.name);
    // What the routes file adds is asked about too.
    let own = if own.is_empty() { tree.map(|tree| tree.ast.clone()) } else { parse(&engine, &text).ok() };
    let mut asking = Asking::new(own, imports.iter().filter_map(|name| trees.get(name)).map(|tree| &tree.ast));
    entries.values_mut().for_each(|entry| entry.asks = asking.asks(&entry.function));
    let mut program = Program {
        id: PROGRAMS.fetch_add(1, Relaxed),
        uses: uses.iter().map(|use_| (use_.function.name.clone(), use_.role)).collect(),
        name: source.name.clone(),
        file: source.file.clone(),
        text: text.into(),
        expressions,
        entries,
        functions,
        definitions: tree.map(|tree| outline::definitions(&tree.ast, &source.text)).unwrap_or_default(),
        hash: library::hex(&hash.finalize()),
        imports,
        sources: sources.clone(),
        health: Arc::new(Health::default()),
    };
    look(&mut program, ast);
    program
}

/// Notes which members each function uses of its parameters. If a script tags values itself, parts of a message could not be
/// recognised.
fn look(program: &mut Program, ast: &AST) {
    let texts = program.imports.iter().filter_map(|name| program.sources.get(name)).map(|source| &*source.text);
    if texts.chain([&*program.text]).any(|text| text.contains("set_tag")) {
        return;
    }
    // What the routes file adds is not in it.
    let with_expressions = if program.expressions.is_empty() {
        None
    } else {
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| program.load()));
        let Ok(Ok(loaded)) = loaded else { return };
        Some(loaded.ast)
    };
    let ast = with_expressions.as_ref().unwrap_or(ast);
    for Entry { function, message, deliver, .. } in program.entries.values_mut() {
        for params in [message, deliver].into_iter().flatten() {
            let wanted = wanted::wanted(ast, function, params.len());
            params.iter_mut().zip(wanted).for_each(|(param, wanted)| param.wanted = wanted);
        }
    }
}

fn wrapped(function: &str, expression: &ExpressionUse) -> String {
    format!("fn {function}({}) {{\n{}\n}}\n", expression.parameters.join(", "), expression.source)
}

fn hinted(diagnostic: Diagnostic, hint: Option<&str>) -> Diagnostic {
    match hint {
        Some(hint) => diagnostic.hint(hint),
        None => diagnostic,
    }
}

/// An expression must be complete by itself: it must not close the function it is put into and continue after it.
fn wrong_expression(engine: &Engine, plugin: &AST, source: &PluginSource, expression: &ExpressionUse) -> Option<Diagnostic> {
    let name = format!("{EXPRESSION_PREFIX}0");
    let wrong = |message: String| Some(Diagnostic::new("S009", expression.at.clone(), message));
    let alone = match parse(engine, &wrapped(&name, expression)) {
        Ok(alone) => alone,
        Err(e) => return wrong(parsing(e.err_type())).map(|diagnostic| hinted(diagnostic, meant(e.err_type()))),
    };
    let named = alone.iter_functions().filter(|f| !f.name.starts_with("anon$")).count();
    if named != 1 || !alone.statements().is_empty() {
        return wrong("it must be exactly one expression".to_owned());
    }
    if walk::ends_with_assignment(&alone, &name) {
        return wrong("it assigns a value, and a condition may not change anything".to_owned()).map(|d| d.hint(COMPARE));
    }
    let mut inner = Vec::new();
    walk::calls(engine, &alone, Some(plugin), source, &mut inner);
    if let Some(first) = inner.into_iter().next() {
        let diagnostic = Diagnostic::new("S009", expression.at.clone(), first.message);
        return Some(hinted(diagnostic, first.hint.as_deref()));
    }
    // Once more with everything around it, for names it may not use.
    let whole = format!("{}\n{}", source.text, wrapped(&name, expression));
    let compiled = parse(engine, &whole).map_err(Into::into).and_then(|parsed| compile(engine, &parsed, &whole, &source.file));
    match compiled {
        Ok(_) => None,
        Err(e) => wrong(plain(&e)),
    }
}

/// What the function of a use is called with.
fn entry(ast: &AST, use_: &FunctionUse) -> Result<Vec<Param>, Diagnostic> {
    let name = &use_.function.name;
    let mut forms: Vec<Vec<String>> = ast
        .iter_functions()
        .filter(|f| *f.name == **name && f.access == rhai::FnAccess::Public)
        .map(|f| f.params.iter().map(|p| (*p).to_string()).collect())
        .collect();
    forms.sort_by_key(|params| std::cmp::Reverse(params.len()));
    if forms.is_empty() {
        let known: Vec<String> = ast
            .iter_functions()
            .filter(|f| f.access == rhai::FnAccess::Public && !f.name.starts_with("anon$"))
            .map(|f| f.name.to_string())
            .collect();
        let message = format!("plugin `{}` has no function `{name}`", use_.function.plugin);
        let diagnostic = Diagnostic::new("S002", use_.at.clone(), message);
        return Err(match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
            None => diagnostic,
        });
    }
    // A name that says something else than what the function is called with would only be found when it runs.
    let named: &[&str] = if use_.role == Role::Deliver { &["event", "sub", "conn"] } else { &["conn", "msg"] };
    let is_named_so = |(name, param): (&String, &Param)| {
        let name = name.trim_start_matches('_');
        !named.contains(&name) || Param::by_name(name) == Some(*param)
    };
    let fits = |params: &Vec<String>| -> Option<Vec<Param>> {
        let one_is_conn = params.first().is_some_and(|name| name.trim_start_matches('_') == "conn");
        let called = match (use_.role, params.len()) {
            (Role::Deliver, 1) => vec![Param::Event],
            (Role::Deliver, 2) => vec![Param::Event, Param::Sub],
            (Role::Deliver, 3) => vec![Param::Event, Param::Sub, Param::Conn],
            (Role::Handler, 1) if one_is_conn => vec![Param::Conn],
            (Role::Validate | Role::Transform | Role::Handler, 1) => vec![Param::Msg],
            (Role::Validate | Role::Transform | Role::Handler, 2) => vec![Param::Conn, Param::Msg],
            _ => return None,
        };
        params.iter().zip(&called).all(is_named_so).then_some(called)
    };
    forms.iter().find_map(fits).ok_or_else(|| {
        let (what, wanted) = match use_.role {
            Role::Validate => ("`validate`", "(msg) or (conn, msg)"),
            Role::Transform => ("`transform`", "(msg) or (conn, msg)"),
            Role::Handler | Role::Expression => ("a function that handles a message", "(msg), (conn) or (conn, msg)"),
            Role::Deliver => ("`deliver`", "(event), (event, sub) or (event, sub, conn)"),
        };
        let has = forms.iter().map(|params| format!("({})", params.join(", "))).collect::<Vec<_>>().join(" and ");
        Diagnostic::new("S003", use_.at.clone(), format!("`{name}` has the parameters {has}"))
            .hint(format!("{what} is called with {wanted}"))
    })
}

/// A diagnostic at a position in a script.
pub(super) fn at(code: &'static str, file: &Arc<str>, position: Position, message: impl Into<String>) -> Diagnostic {
    let line = u32::try_from(position.line().unwrap_or(1)).unwrap_or(1);
    let column = u32::try_from(position.position().unwrap_or(1)).unwrap_or(1).max(1);
    let location = SourceLocation { file: file.clone(), line, column };
    Diagnostic::new(code, SourceSpan { location, len: 1 }, message)
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= known.chars().count().min(name.chars().count()).div_ceil(3) && known.len() > 2)
        .min()
        .map(|(_, known)| known)
}
