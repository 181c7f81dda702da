//! Which functions of a plugin may ask about the world: those that name one of the host's that looks, and those that lead to one.
//! Read from the syntax tree when the plugin is loaded, so that a call of any other is not watched.
//!
//! Functions are distinguished by their names alone, and a name that is only known when the script runs may be any. To assume
//! wrongly that a function asks costs little; the opposite would cost a row its isolation.

use std::collections::{HashMap, HashSet};

use rhai::{AST, ASTNode, Expr, FnCallExpr, FnPtr, Stmt};

use super::host::ASKING;
use super::library::MODULES;

/// Methods of lists that take a function by its name, too.
const BY_NAME: [&str; 11] = ["all", "dedup", "drain", "filter", "index_of", "map", "reduce", "reduce_rev", "retain", "some", "sort"];

/// The functions of a plugin, as far as they were looked at.
pub(super) struct Asking {
    ast: AST,
    /// What it defines.
    defined: HashSet<String>,
    /// The statements at its top: constants may hold functions that others call.
    top: Leads,
    /// Whether anything that it imports asks.
    imports_ask: bool,
    /// Whether constants of what it imports hold functions.
    imports_give: bool,
    looked_at: HashMap<String, Leads>,
}

/// Where a part of a script may lead.
#[derive(Default)]
struct Leads {
    functions: HashSet<String>,
    /// To what is imported.
    imports: bool,
    /// Anywhere.
    anywhere: bool,
}

impl Asking {
    /// `ast`: that of a plugin; none where it cannot be read. `imports`: those of all it imports. None of them is optimised, so that
    /// every call is in it.
    pub(super) fn new<'t>(ast: Option<AST>, imports: impl Iterator<Item = &'t AST>) -> Self {
        let (mut imports_ask, mut imports_give) = (false, false);
        for ast in imports {
            let all = Leads::of(ast);
            imports_ask |= all.anywhere || all.functions.iter().any(|name| asks(name));
            imports_give |= Leads::of(ast.clone().clear_functions()).is_some();
        }
        let unreadable = Leads { anywhere: true, ..Leads::default() };
        let top = ast.as_ref().map_or(unreadable, |ast| Leads::of(ast.clone().clear_functions()));
        let ast = ast.unwrap_or_else(AST::empty);
        let defined = ast.iter_functions().map(|function| function.name.to_owned()).collect();
        Self { defined, ast, top, imports_ask, imports_give, looked_at: HashMap::new() }
    }

    /// Whether a function of this name may ask.
    pub(super) fn asks(&mut self, function: &str) -> bool {
        if self.top.anywhere || self.imports_ask && (self.imports_give || self.top.imports) {
            return true;
        }
        let mut open: Vec<String> = self.top.functions.iter().cloned().chain([function.to_owned()]).collect();
        let mut seen = HashSet::new();
        while let Some(name) = open.pop() {
            if asks(&name) {
                return true;
            }
            if !self.defined.contains(&name) || !seen.insert(name.clone()) {
                continue;
            }
            let leads = self.looked_at.entry(name).or_insert_with_key(|name| {
                let mut one = self.ast.clone();
                one.clear_statements().retain_functions(|_, _, function, _| function == name);
                Leads::of(&one)
            });
            if leads.anywhere || leads.imports && self.imports_ask {
                return true;
            }
            open.extend(leads.functions.iter().cloned());
        }
        false
    }
}

fn asks(name: &str) -> bool {
    ASKING.contains(&name)
}

impl Leads {
    fn of(ast: &AST) -> Self {
        let mut leads = Self::default();
        ast.walk(&mut |path| {
            match path.last() {
                Some(ASTNode::Expr(Expr::FnCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _))) => leads.call(call, 1),
                Some(ASTNode::Expr(Expr::MethodCall(call, _))) => leads.call(call, 0),
                Some(ASTNode::Expr(Expr::DynamicConstant(value, _))) => {
                    leads.functions.extend(value.clone().try_cast::<FnPtr>().map(|function| function.fn_name().to_owned()));
                }
                Some(ASTNode::Expr(Expr::Variable(variable, ..))) if !variable.2.is_empty() => leads.imports = true,
                // Its value is not walked over.
                Some(ASTNode::Stmt(Stmt::BreakLoop(Some(_), ..))) => leads.anywhere = true,
                _ => {}
            }
            true
        });
        leads
    }

    fn is_some(&self) -> bool {
        self.imports || self.anywhere || !self.functions.is_empty()
    }

    /// `object`: how many of the arguments come before those that name functions, where it takes any.
    fn call(&mut self, call: &FnCallExpr, object: usize) {
        let name = call.name.as_str();
        if call.is_qualified() {
            self.imports |= !MODULES.iter().any(|(module, _)| *module == call.namespace.root());
        } else if name == "Fn" {
            call.args.iter().for_each(|argument| self.named(argument));
        } else {
            self.functions.insert(name.to_owned());
            if BY_NAME.contains(&name) {
                call.args.iter().skip(object).for_each(|argument| self.named(argument));
            }
        }
    }

    /// A function, or the name of one.
    fn named(&mut self, argument: &Expr) {
        match argument {
            Expr::StringConstant(name, _) => drop(self.functions.insert(name.to_string())),
            // Functions in place are found by themselves; numbers and the like are none.
            Expr::DynamicConstant(..) | Expr::IntegerConstant(..) | Expr::FloatConstant(..) | Expr::BoolConstant(..) => {}
            Expr::Stmt(block) if is_closure(block.statements()) => {}
            _ => self.anywhere = true,
        }
    }
}

/// A function in place that knows variables around it: they are given to it by `curry`.
fn is_closure(statements: &[Stmt]) -> bool {
    let curries = |call: &FnCallExpr| call.name == "curry" && matches!(call.args.first(), Some(Expr::DynamicConstant(..)));
    match statements.last() {
        Some(Stmt::Expr(expr)) => matches!(&**expr, Expr::FnCall(call, _) if curries(call)),
        Some(Stmt::FnCall(call, _)) => curries(call),
        _ => false,
    }
}
