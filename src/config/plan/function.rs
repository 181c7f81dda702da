//! What the file requires of plugins: which functions, in which role, and where the file names them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::SourceSpan;
use crate::model::PluginName;

/// A function of a plugin, or a compiled expression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FnRef {
    /// The plugin's name.
    pub plugin: PluginName,
    /// The function's name. Expressions get a name that no plugin can write.
    pub name: Arc<str>,
}

/// The role of a function, which determines how it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `(msg)` or `(conn, msg)`: true, false, or a throw.
    Validate,
    /// `(msg)` or `(conn, msg)`: the new message, a list, or `()`.
    Transform,
    /// `(conn)` or `(conn, msg)`: handlers, and replies by function.
    Handler,
    /// `(event)`, `(event, sub)` or `(event, sub, conn)`
    Deliver,
    /// An expression of `when:`; never named by a plugin.
    Expression,
}

/// A place in the file that names a function of a plugin: checked once scripts are compiled.
#[derive(Debug, Clone)]
pub struct FunctionUse {
    /// The function.
    pub function: FnRef,
    /// How it will be called.
    pub role: Role,
    /// Where it is named.
    pub at: SourceSpan,
}

/// An expression of the file, to be compiled along with its plugin.
#[derive(Debug, Clone)]
pub struct ExpressionUse {
    /// What it is called by.
    pub function: FnRef,
    /// Rhai source over `msg`, `type`, `data`, `conn`, `event`, `sub`: references already rewritten (`$.x` to `msg.x`).
    pub source: Arc<str>,
    /// The parameters, in order: what the expression may look at.
    pub parameters: &'static [&'static str],
    /// Its place in the routes file.
    pub at: SourceSpan,
}

/// A plugin's source text.
#[derive(Debug, Clone)]
pub struct PluginSource {
    /// `agent` for `plugins/agent.rhai`.
    pub name: PluginName,
    /// The file as users see it.
    pub file: Arc<str>,
    /// Its text.
    pub text: Arc<str>,
}

/// All plugins that were found, by name, and the folder they came from.
#[derive(Debug, Clone, Default)]
pub struct Plugins {
    /// `plugins/`, next to the routes file.
    pub folder: PathBuf,
    /// By name.
    pub sources: BTreeMap<PluginName, PluginSource>,
}
