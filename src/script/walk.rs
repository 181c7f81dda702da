//! One walk over a plugin's syntax tree: what is at its top, what it imports, what it calls, which host functions it redefines.

use std::collections::HashSet;

use rhai::{AST, ASTNode, Engine, Expr, Position, Stmt};

use super::check::{at, nearest};
use super::host::FUNCTIONS;
use super::library::MODULES;
use super::overrides::HIDDEN;
use super::program::{EXPRESSION_PREFIX, Sources};
use crate::config::diagnostic::Diagnostic;
use crate::config::plan::PluginSource;

/// Functions of the language that no module lists.
const KEYWORDS: &[&str] = &["type_of", "is_def_var", "is_def_fn", "is_shared", "print", "debug", "Fn", "call", "curry", "tag"];

/// Checks a plugin that parses.
pub(super) fn check(engine: &Engine, ast: &AST, source: &PluginSource, sources: &Sources, found: &mut Vec<Diagnostic>) {
    top(ast, source, sources, found);
    definitions(ast, source, found);
    calls(engine, ast, None, source, found);
}

/// The names a plugin imports at its top. Imports that are not literals are reported elsewhere.
pub(super) fn imports(ast: &AST) -> Vec<String> {
    let literal = |stmt: &Stmt| match stmt {
        Stmt::Import(import, _) => match &import.0 {
            Expr::StringConstant(path, _) => Some(path.to_string()),
            _ => None,
        },
        _ => None,
    };
    ast.statements().iter().filter_map(literal).collect()
}

/// The constants at the top of a plugin.
pub(super) fn constants(ast: &AST) -> Vec<String> {
    let constant = |stmt: &Stmt| match stmt {
        Stmt::Var(var, flags, _) if flags.contains(rhai::ASTFlags::CONSTANT) => Some(var.0.name.to_string()),
        _ => None,
    };
    ast.statements().iter().filter_map(constant).collect()
}

fn top(ast: &AST, source: &PluginSource, sources: &Sources, found: &mut Vec<Diagnostic>) {
    for stmt in ast.statements() {
        match stmt {
            Stmt::Noop(_) | Stmt::Export(..) => {}
            Stmt::Var(_, flags, _) if flags.contains(rhai::ASTFlags::CONSTANT) => {}
            Stmt::Import(import, position) => {
                let Some(why) = refused(&import.0, import.1.name.as_str(), sources) else { continue };
                let position = match &import.0 {
                    Expr::StringConstant(_, position) => *position,
                    _ => *position,
                };
                found.push(at("S006", &source.file, position, why));
            }
            _ => {
                let message = "only functions, constants and imports may be at the top of a script";
                found.push(at("S008", &source.file, stmt.position(), message).hint("put it into a function"));
            }
        }
    }
    let top: HashSet<Position> = ast.statements().iter().filter(|s| matches!(s, Stmt::Import(..))).map(Stmt::position).collect();
    ast.walk(&mut |path| {
        if let Some(ASTNode::Stmt(stmt @ Stmt::Import(..))) = path.last()
            && !top.contains(&stmt.position())
        {
            found.push(at("S006", &source.file, stmt.position(), "an import must be at the top of the file, not in a function"));
        }
        true
    });
}

/// Why an import is refused.
fn refused(path: &Expr, alias: &str, sources: &Sources) -> Option<String> {
    let Expr::StringConstant(path, _) = path else {
        return Some("the import must name a plugin as a text in quotes, not as an expression".to_owned());
    };
    if MODULES.iter().any(|(name, _)| *name == alias) {
        return Some(format!("`{alias}` is a module of the host: import it under another name"));
    }
    if alias.is_empty() {
        return Some(format!("give the import a name: import \"{path}\" as {path};"));
    }
    if sources.contains_key(path.as_str()) {
        return None;
    }
    if !path.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
        return Some(format!("`{path}`: only other plugins can be imported, by their plain names"));
    }
    let near = nearest(path, sources.keys().map(|name| &**name)).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
    Some(format!("there is no plugin `{path}` to import{near}"))
}

fn definitions(ast: &AST, source: &PluginSource, found: &mut Vec<Diagnostic>) {
    for function in ast.iter_functions() {
        let arity = function.params.len();
        let position = definition(&source.text, function.name);
        if let Some((.., form)) = FUNCTIONS.iter().find(|(name, n, _)| *name == function.name && *n == arity) {
            let message = format!("`{}` with {arity} parameters is a function of the host: {form}", function.name);
            found.push(at("S007", &source.file, position, message).hint("give yours another name"));
        } else if function.name.starts_with(EXPRESSION_PREFIX) || HIDDEN.iter().any(|(name, _)| *name == function.name) {
            found.push(at("S007", &source.file, position, format!("`{}` is a name scripts cannot use", function.name)));
        }
    }
}

/// Where a function is defined. The syntax tree keeps no position for it.
pub(super) fn definition(text: &str, name: &str) -> Position {
    for (i, line) in text.lines().enumerate() {
        for (at, _) in line.match_indices("fn ") {
            let rest = line[at + 3..].trim_start();
            if rest.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('(')) {
                let column = line[..at].chars().count() + 1;
                return match (u16::try_from(i + 1), u16::try_from(column)) {
                    (Ok(line), Ok(column)) => Position::new(line, column),
                    _ => Position::NONE,
                };
            }
        }
    }
    Position::NONE
}

/// Whether the last statement of a function assigns a value, so that the function returns nothing.
pub(super) fn ends_with_assignment(ast: &AST, function: &str) -> bool {
    let (mut one, mut last) = (ast.clone(), false);
    one.clear_statements().retain_functions(|_, _, name, _| name == function);
    one.walk(&mut |path| {
        if let [ASTNode::Stmt(stmt)] = path {
            last = matches!(stmt, Stmt::Assignment(..));
        }
        true
    });
    last
}

/// Checks that every called function exists. `beside` holds more functions that may be called.
pub(super) fn calls(engine: &Engine, ast: &AST, beside: Option<&AST>, source: &PluginSource, found: &mut Vec<Diagnostic>) {
    let mut known: HashSet<(String, usize)> = FUNCTIONS.iter().map(|(name, n, _)| ((*name).to_owned(), *n)).collect();
    let own: Vec<(String, usize)> =
        std::iter::once(ast).chain(beside).flat_map(AST::iter_functions).map(|f| (f.name.to_owned(), f.params.len())).collect();
    known.extend(own.iter().cloned());
    let library: HashSet<String> = engine
        .collect_fn_metadata(None, |f| f.namespace.is_empty().then(|| f.metadata.name.to_string()), true)
        .into_iter()
        .chain(KEYWORDS.iter().map(|&name| name.to_owned()))
        .filter(|name| !FUNCTIONS.iter().any(|(host, ..)| host == name))
        .collect();
    let variables = variables(ast);
    ast.walk(&mut |path| {
        let (call, position, method) = match path.last() {
            Some(ASTNode::Expr(Expr::FnCall(call, position))) | Some(ASTNode::Stmt(Stmt::FnCall(call, position))) => (call, *position, 0),
            Some(ASTNode::Expr(Expr::MethodCall(call, position))) => (call, *position, 1),
            _ => return true,
        };
        let (name, given) = (call.name.as_str(), call.args.len() + method);
        if let Some(module) = call.is_qualified().then(|| call.namespace.root()) {
            qualified(module, name, given, position, source, found);
            return true;
        }
        if let Some((_, instead)) = HIDDEN.iter().find(|(hidden, _)| *hidden == name) {
            found.push(at("S004", &source.file, position, format!("`{name}` is not available")).hint(*instead));
            return true;
        }
        let plain = name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
        if !plain || known.contains(&(name.to_owned(), given)) || library.contains(name) || variables.contains(name) {
            return true;
        }
        let message = match forms(name, &own) {
            Some(forms) => format!("`{name}` is {forms}, called with {given} {}", if given == 1 { "argument" } else { "arguments" }),
            None => format!("there is no function `{name}`"),
        };
        let names = known.iter().map(|(known, _)| known.as_str()).chain(library.iter().map(String::as_str));
        let near =
            nearest(name, names.filter(|known| *known != name && known.starts_with(char::is_alphabetic) && !known.starts_with("anon$")));
        let diagnostic = at("S004", &source.file, position, message);
        found.push(match near {
            Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
            None => diagnostic,
        });
        true
    });
}

/// The forms in which a known name may be called.
fn forms(name: &str, own: &[(String, usize)]) -> Option<String> {
    let host = FUNCTIONS.iter().filter(|(known, ..)| *known == name).map(|(.., form)| format!("`{form}`"));
    let own = own.iter().filter(|(known, _)| known == name).map(|(_, n)| format!("a function of {n} parameters"));
    let forms: Vec<String> = host.chain(own).collect();
    (!forms.is_empty()).then(|| forms.join(" or "))
}

/// A call of `json::parse` and the like. What an import offers is known when it is loaded.
fn qualified(module: &str, name: &str, given: usize, position: Position, source: &PluginSource, found: &mut Vec<Diagnostic>) {
    let Some((_, functions)) = MODULES.iter().find(|(known, _)| *known == module) else { return };
    if functions.iter().any(|(known, n, _)| *known == name && *n == given) {
        return;
    }
    let diagnostic = match functions.iter().find(|(known, ..)| *known == name) {
        Some((.., form)) => at("S004", &source.file, position, format!("`{module}::{name}` is `{form}`, called with {given}")),
        None => {
            let all: Vec<&str> = functions.iter().map(|(.., form)| *form).collect();
            at("S004", &source.file, position, format!("there is no `{module}::{name}`")).hint(format!("known here: {}", all.join(", ")))
        }
    };
    found.push(diagnostic);
}

/// Names that may hold a function: variables, parameters, members of object literals.
fn variables(ast: &AST) -> HashSet<String> {
    let mut names: HashSet<String> =
        ast.iter_functions().flat_map(|f| f.params.iter().map(|p| (*p).to_string()).collect::<Vec<_>>()).collect();
    ast.walk(&mut |path| {
        match path.last() {
            Some(ASTNode::Stmt(Stmt::Var(var, ..))) => drop(names.insert(var.0.name.to_string())),
            Some(ASTNode::Expr(Expr::Map(map, _))) => names.extend(map.0.iter().map(|(key, _)| key.name.to_string())),
            _ => {}
        }
        true
    });
    names
}
