//! Which members of a parameter a function uses, read from the function's syntax tree when it is loaded, so that a call converts
//! no more of a message than these. It recognises the forms that use one member; in any other form the function uses the whole
//! value.

use std::collections::BTreeMap;

use rhai::{AST, ASTFlags, ASTNode, Expr, FnCallExpr, Identifier, Position, Stmt};

use crate::model::json;

/// What a function wants of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    All,
    /// These members, if it is an object. The function can only return the others unchanged.
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
    /// How much of it is read. None: it is only replaced.
    pub(super) read: Option<Part>,
    /// Whether it may be another afterwards.
    pub(super) changed: bool,
}

/// How much of a value is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// These members, if it is an object. No members: only its type.
    Members(Members),
    /// All of it.
    Whole,
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

    /// Which of them a key of a JSON text is.
    pub(super) fn find(&self, quoted: &str) -> Option<usize> {
        let name = &quoted[1..quoted.len() - 1];
        if name.contains('\\') {
            return self.list.iter().position(|member| json::key_is(quoted, &member.name));
        }
        // Most keys differ from all of them in length already.
        if self.lengths & Self::length(name) == 0 { None } else { self.list.iter().position(|member| member.name == name) }
    }
}

impl std::ops::Deref for Members {
    type Target = [Member];

    fn deref(&self) -> &[Member] {
        &self.list
    }
}

/// What is known about a member while a function is analysed.
#[derive(Default)]
struct Seen {
    read: bool,
    whole: bool,
    changed: bool,
    members: BTreeMap<Identifier, Seen>,
}

impl Seen {
    fn members(seen: BTreeMap<Identifier, Seen>) -> Members {
        let member = |(name, seen): (Identifier, Seen)| {
            let whole = seen.whole || seen.changed || seen.members.len() > MEMBERS_MAX;
            let part = if whole { Part::Whole } else { Part::Members(Self::members(seen.members)) };
            Member { name, read: seen.read.then_some(part), changed: seen.changed }
        };
        Members::new(seen.into_iter().map(member).collect())
    }
}

/// Of more members all are wanted: a bit for each is kept while they are written.
const MEMBERS_MAX: usize = 64;

/// Methods of objects that use one member, if a literal names it.
const OF_ONE_MEMBER: [&str; 3] = ["has", "contains", "remove"];

/// Methods that do not change the value they are called on. Any other method may.
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

/// What a function of this name uses of each of its parameters.
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
    /// The plugin. If it defines a function, a call of that name calls it.
    plugin: &'a AST,
    all: bool,
    returned: bool,
    members: BTreeMap<Identifier, Seen>,
    /// Methods that are called on the parameter itself.
    methods: Vec<Identifier>,
    /// Where it is a statement of its own …
    alone: Vec<Position>,
    /// … and whether that is what the function returns.
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
        Wanted::Members { members: Seen::members(self.members), returned: self.returned }
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

    /// The parameter occurs somewhere.
    fn appearance(&mut self, expr: &Expr, path: &[ASTNode<'_>]) {
        let above = |n: usize| path.len().checked_sub(n + 1).map(|at| &path[at]);
        let meant = match above(1) {
            Some(ASTNode::Expr(chain @ (Expr::Dot(link, flags, _) | Expr::Index(link, flags, _)))) if std::ptr::eq(&link.lhs, expr) => {
                self.chain(chain, &link.rhs, *flags, above(2))
            }
            Some(ASTNode::Expr(Expr::FnCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _))) => {
                self.is_type_of(expr, call) || self.is_in(expr, call)
            }
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
        if let (Expr::Dot(..), Expr::MethodCall(call, _)) = (chain, first) {
            return rest.is_none() && assigned.is_none() && self.method(call);
        }
        let Some(name) = named(chain, first) else { return false };
        let changed = assigned.is_some() || rest.is_some_and(|(rest, flags)| self.may_change(rest, flags));
        if changed {
            self.means(name, rest.is_some() || assigned != Some(false), true);
            return true;
        }
        let is_type_asked = match above {
            Some(ASTNode::Expr(Expr::FnCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _))) => self.is_type_of(chain, call),
            _ => false,
        };
        let (names, is_all) = names(chain);
        let mut seen = &mut self.members;
        for (i, name) in names.iter().enumerate() {
            let member = seen.entry(name.clone()).or_default();
            member.read = true;
            // The last link is used as a whole, unless only its type is read.
            member.whole |= i + 1 == names.len() && !(is_all && is_type_asked);
            seen = &mut member.members;
        }
        true
    }

    /// A method of the parameter itself.
    fn method(&mut self, call: &FnCallExpr) -> bool {
        let [Expr::StringConstant(name, _)] = &*call.args else { return false };
        if !OF_ONE_MEMBER.contains(&call.name.as_str()) || self.defines(&call.name) {
            return false;
        }
        self.methods.push(call.name.as_str().into());
        if call.name == "remove" {
            self.means(name.as_str().into(), true, true);
        } else {
            self.members.entry(name.as_str().into()).or_default().read = true;
        }
        true
    }

    /// `type_of(msg)`.
    fn is_type_of(&self, expr: &Expr, call: &FnCallExpr) -> bool {
        matches!(&*call.args, [of] if std::ptr::eq(of, expr)) && call.name == "type_of" && !call.is_qualified() && !self.defines("type_of")
    }

    /// `"a" in msg`, which is a call of `contains(msg, "a")`.
    fn is_in(&mut self, expr: &Expr, call: &FnCallExpr) -> bool {
        let [object, Expr::StringConstant(name, _)] = &*call.args else { return false };
        let is_in = call.name == "contains" && !call.is_qualified() && !self.defines("contains") && std::ptr::eq(object, expr);
        if is_in {
            self.members.entry(name.as_str().into()).or_default().read = true;
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
        let member = self.members.entry(name).or_default();
        member.read |= read;
        member.whole |= read;
        member.changed |= changed;
    }
}

/// The name of the member that this link of a chain reads, if it is a literal.
fn named(chain: &Expr, link: &Expr) -> Option<Identifier> {
    match (chain, link) {
        (Expr::Dot(..), Expr::Property(property, _)) => Some(property.2.as_str().into()),
        (Expr::Index(..), Expr::StringConstant(name, _)) => Some(name.as_str().into()),
        _ => None,
    }
}

/// The names a chain goes along, up to the first link that is something else, and whether that are all links.
fn names(mut chain: &Expr) -> (Vec<Identifier>, bool) {
    let mut names = Vec::new();
    while let Expr::Dot(link, flags, _) | Expr::Index(link, flags, _) = chain {
        let (this, next) = match &link.rhs {
            next @ (Expr::Dot(inner, ..) | Expr::Index(inner, ..)) if !flags.contains(ASTFlags::BREAK) => (&inner.lhs, Some(next)),
            last => (last, None),
        };
        let Some(name) = named(chain, this) else { return (names, false) };
        names.push(name);
        match next {
            Some(next) => chain = next,
            None => break,
        }
    }
    (names, true)
}

/// Where the value of a statement is a variable.
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
