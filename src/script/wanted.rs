//! What a function wants of a parameter: which members of it, read from the function's syntax tree when it is loaded, so that a call
//! converts no more of a message than that. It knows the forms in which one member is meant; in any other form all of it is wanted.

use std::collections::BTreeMap;

use rhai::{AST, ASTFlags, ASTNode, Expr, FnCallExpr, Identifier, Position, Stmt};

use crate::model::json;

/// What a function wants of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    All,
    /// These members, where it is an object. The others the function can only give back as they came.
    Members {
        members: Members,
        /// Whether the function may give the whole object back.
        returned: bool,
    },
}

/// A member a function names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Identifier,
    /// Whether it is looked at, rather than only replaced.
    pub(super) read: bool,
    /// Whether it may be another afterwards.
    pub(super) changed: bool,
}

/// The members a function names, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Members {
    list: Box<[Member]>,
    /// A bit for each length of a name, the last for all that are longer.
    lengths: u64,
}

impl Members {
    fn new(list: Box<[Member]>) -> Self {
        let lengths = list.iter().fold(0, |lengths, member| lengths | Self::length(&member.name));
        Self { list, lengths }
    }

    fn length(name: &str) -> u64 {
        1 << name.len().min(63)
    }

    /// Which of them a key means, as it stands in a text of JSON.
    pub(super) fn find(&self, quoted: &str) -> Option<usize> {
        let name = &quoted[1..quoted.len() - 1];
        if name.contains('\\') {
            return self.list.iter().position(|member| json::key_is(quoted, &member.name));
        }
        // Most keys are of a length that none of them has.
        if self.lengths & Self::length(name) == 0 { None } else { self.list.iter().position(|member| member.name == name) }
    }
}

impl std::ops::Deref for Members {
    type Target = [Member];

    fn deref(&self) -> &[Member] {
        &self.list
    }
}

/// Of more members all are wanted: a bit for each is kept while they are written.
const MEMBERS_MAX: usize = 64;

/// Methods of objects that mean one member, where a literal names it.
const OF_ONE_MEMBER: [&str; 3] = ["has", "contains", "remove"];

/// Methods that leave the value they are called on as it was. Of any other that is not known.
const ONLY_LOOK: [&str; 14] = [
    "contains",
    "ends_with",
    "has",
    "index_of",
    "is_empty",
    "keys",
    "len",
    "starts_with",
    "sub_string",
    "to_float",
    "to_int",
    "to_string",
    "type_of",
    "values",
];

/// What a function of this name wants of each of its parameters.
pub(super) fn wanted(ast: &AST, function: &str, arity: usize) -> Vec<Wanted> {
    let mut one = ast.clone();
    one.retain_functions(|_, _, name, params| name == function && params == arity);
    let mut functions = one.iter_functions();
    match (functions.next(), functions.next()) {
        (Some(f), None) => f.params.iter().map(|name| Look::new(name, ast).at(&one)).collect(),
        // Forms for several types of `this`, which no call from outside has.
        _ => vec![Wanted::All; arity],
    }
}

/// A look at one parameter.
struct Look<'a> {
    name: &'a str,
    /// The plugin: where it defines a function, a call of that name means that one.
    plugin: &'a AST,
    all: bool,
    returned: bool,
    members: BTreeMap<Identifier, Member>,
    /// Methods that are called on the parameter itself.
    methods: Vec<Identifier>,
    /// Where it stands as a statement of its own …
    alone: Vec<Position>,
    /// … and where that is what the function gives back.
    last: Vec<Position>,
}

impl<'a> Look<'a> {
    fn new(name: &'a str, plugin: &'a AST) -> Self {
        Self {
            name,
            plugin,
            all: false,
            returned: false,
            members: BTreeMap::new(),
            methods: Vec::new(),
            alone: Vec::new(),
            last: Vec::new(),
        }
    }

    fn at(mut self, function: &AST) -> Wanted {
        function.walk(&mut |path| {
            self.node(path);
            !self.all
        });
        // A member may hold a function that is called like a method.
        let called = self.methods.iter().any(|method| self.members.contains_key(method));
        if self.all || called || self.members.len() > MEMBERS_MAX || self.alone.iter().any(|at| !self.last.contains(at)) {
            return Wanted::All;
        }
        Wanted::Members { members: Members::new(self.members.into_values().collect()), returned: self.returned }
    }

    fn node(&mut self, path: &[ASTNode<'_>]) {
        if let [ASTNode::Stmt(stmt)] = path {
            // The last of these is the function's last statement.
            self.last.clear();
            gives(stmt, &mut self.last);
        }
        match path.last() {
            Some(ASTNode::Stmt(stmt)) => self.all |= self.hides(stmt),
            Some(ASTNode::Expr(Expr::FnCall(call, _))) if call.capture_parent_scope => self.all = true,
            Some(ASTNode::Expr(expr @ Expr::Variable(variable, ..))) if variable.1 == *self.name => self.appearance(expr, path),
            _ => {}
        }
    }

    /// Whether a statement may give the name another meaning, or has parts that are not walked over.
    fn hides(&self, stmt: &Stmt) -> bool {
        match stmt {
            Stmt::Var(var, ..) => var.0.name == *self.name,
            Stmt::For(parts, _) => parts.0.name == *self.name || parts.1.as_ref().is_some_and(|counter| counter.name == *self.name),
            Stmt::TryCatch(parts, _) => matches!(&parts.expr, Expr::Variable(caught, ..) if caught.1 == *self.name),
            Stmt::Share(names) => names.iter().any(|(name, _)| name.name == *self.name),
            Stmt::FnCall(call, _) => call.capture_parent_scope,
            Stmt::BreakLoop(Some(_), ..) | Stmt::Import(..) | Stmt::Export(..) => true,
            _ => false,
        }
    }

    /// The parameter stands somewhere.
    fn appearance(&mut self, expr: &Expr, path: &[ASTNode<'_>]) {
        let above = |n: usize| path.len().checked_sub(n + 1).map(|at| &path[at]);
        let meant = match above(1) {
            Some(ASTNode::Expr(chain @ (Expr::Dot(link, flags, _) | Expr::Index(link, flags, _)))) if std::ptr::eq(&link.lhs, expr) => {
                self.chain(chain, &link.rhs, *flags, above(2))
            }
            Some(ASTNode::Expr(Expr::FnCall(call, _))) => self.is_in(expr, call),
            Some(ASTNode::Stmt(Stmt::Return(Some(_), flags, _))) => {
                self.returned = true;
                !flags.contains(ASTFlags::BREAK)
            }
            Some(ASTNode::Stmt(Stmt::Expr(_))) => {
                self.returned = true;
                self.alone.push(expr.position());
                true
            }
            _ => false,
        };
        self.all |= !meant;
    }

    /// `msg.a…`, `msg["a"]…`, `msg.has("a")`.
    fn chain(&mut self, chain: &Expr, rhs: &Expr, flags: ASTFlags, above: Option<&ASTNode<'_>>) -> bool {
        let assigned = match above {
            // Within another chain the variable may be an index of it: `list[msg].a`.
            Some(ASTNode::Expr(Expr::Dot(outer, ..) | Expr::Index(outer, ..))) if std::ptr::eq(&outer.rhs, chain) => return false,
            Some(ASTNode::Stmt(Stmt::Assignment(parts))) if std::ptr::eq(&parts.1.lhs, chain) => Some(parts.0.is_op_assignment()),
            _ => None,
        };
        let (first, rest) = match rhs {
            Expr::Dot(link, flags_after, _) | Expr::Index(link, flags_after, _) if !flags.contains(ASTFlags::BREAK) => {
                (&link.lhs, Some((&link.rhs, *flags_after)))
            }
            _ => (rhs, None),
        };
        let name = match (chain, first) {
            (Expr::Dot(..), Expr::Property(property, _)) => Identifier::from(property.2.as_str()),
            (Expr::Index(..), Expr::StringConstant(name, _)) => Identifier::from(name.as_str()),
            (Expr::Dot(..), Expr::MethodCall(call, _)) => return rest.is_none() && assigned.is_none() && self.method(call),
            _ => return false,
        };
        let changed = assigned.is_some() || rest.is_some_and(|(rest, flags)| self.may_change(rest, flags));
        self.means(name, rest.is_some() || assigned != Some(false), changed);
        true
    }

    /// A method of the parameter itself.
    fn method(&mut self, call: &FnCallExpr) -> bool {
        let [Expr::StringConstant(name, _)] = &*call.args else { return false };
        if !OF_ONE_MEMBER.contains(&call.name.as_str()) || self.defines(&call.name) {
            return false;
        }
        self.methods.push(call.name.as_str().into());
        self.means(name.as_str().into(), true, call.name == "remove");
        true
    }

    /// `"a" in msg`, which is a call of `contains(msg, "a")`.
    fn is_in(&mut self, expr: &Expr, call: &FnCallExpr) -> bool {
        let [object, Expr::StringConstant(name, _)] = &*call.args else { return false };
        let is_in = call.name == "contains" && !call.is_qualified() && !self.defines("contains") && std::ptr::eq(object, expr);
        if is_in {
            self.means(name.as_str().into(), true, false);
        }
        is_in
    }

    /// Whether what comes after a member in a chain may change it.
    fn may_change(&self, mut rest: &Expr, mut flags: ASTFlags) -> bool {
        loop {
            let (link, after) = match rest {
                Expr::Dot(link, flags_after, _) | Expr::Index(link, flags_after, _) if !flags.contains(ASTFlags::BREAK) => {
                    (&link.lhs, Some((&link.rhs, *flags_after)))
                }
                _ => (rest, None),
            };
            if let Expr::MethodCall(call, _) = link
                && (!ONLY_LOOK.contains(&call.name.as_str()) || self.defines(&call.name))
            {
                return true;
            }
            match after {
                Some(after) => (rest, flags) = after,
                None => return false,
            }
        }
    }

    fn defines(&self, name: &str) -> bool {
        self.plugin.iter_functions().any(|function| function.name == name)
    }

    fn means(&mut self, name: Identifier, read: bool, changed: bool) {
        let member = self.members.entry(name.clone()).or_insert(Member { name, read: false, changed: false });
        member.read |= read;
        member.changed |= changed;
    }
}

/// Where a variable stands that is the value of a statement.
fn gives(stmt: &Stmt, found: &mut Vec<Position>) {
    let mut last_of = |statements: &[Stmt]| {
        if let Some(last) = statements.last() {
            gives(last, found);
        }
    };
    match stmt {
        Stmt::If(parts, _) => {
            last_of(parts.body.statements());
            last_of(parts.branch.statements());
        }
        Stmt::Block(block) => last_of(block.statements()),
        Stmt::Expr(expr) => match &**expr {
            Expr::Variable(.., at) => found.push(*at),
            Expr::Stmt(block) => last_of(block.statements()),
            _ => {}
        },
        _ => {}
    }
}
