//! Rows: what a message, a timer or a request does. One reader for all places that have rows; the place decides which keys
//! and references there are.

use super::channels::Channels;
use super::codes;
use super::diagnostic::Diagnostic;
use super::effects;
use super::expression;
use super::fields::{Collected, Fields};
use super::node::{Node, Yaml};
use super::plan::{FnRef, Role, Row, SourceSpan, Table};
use super::template::AllowedRefs;
use super::values;
use crate::model::PluginName;
use crate::model::id::RowId;
use crate::model::pattern::Glob;

/// Where a row stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Message,
    Open,
    Close,
    Every,
    Idle,
    Http,
    Source,
    HttpSource,
}

impl Kind {
    /// What a person calls it.
    fn what(self) -> &'static str {
        match self {
            Kind::Message => "a row of `messages`",
            Kind::Open => "a row of `open`",
            Kind::Close => "a row of `close`",
            Kind::Every => "a row of `every`",
            Kind::Idle => "`idle`",
            Kind::Http => "a row of `http`",
            Kind::Source | Kind::HttpSource => "a row of a source",
        }
    }

    fn allowed(self) -> AllowedRefs {
        match self {
            Kind::Message => AllowedRefs::MESSAGE,
            Kind::Open | Kind::Close | Kind::Every | Kind::Idle => AllowedRefs::CONNECTION,
            Kind::Http => AllowedRefs::HTTP,
            Kind::Source => AllowedRefs::SOURCE,
            Kind::HttpSource => AllowedRefs::HTTP_SOURCE,
        }
    }

    fn has_message(self) -> bool {
        matches!(self, Kind::Message | Kind::Http | Kind::Source | Kind::HttpSource)
    }

    /// Whether there is a connection that can be changed.
    fn has_connection(self) -> bool {
        matches!(self, Kind::Message | Kind::Open | Kind::Every)
    }
}

/// What the reader of rows needs to know about their protocol or source.
pub(super) struct Rows<'a> {
    pub(super) all: &'a Collected,
    pub(super) channels: &'a Channels,
    /// The protocol's or source's name.
    pub(super) actor: &'a str,
    /// Where bare function names are looked for.
    pub(super) plugin: &'a PluginName,
}

impl Rows<'_> {
    /// One row, or a list, of which the first whose `when` holds applies.
    pub(super) fn rows(&self, node: &Node, kind: Kind, name: &str) -> Vec<Row> {
        let row = |item: &Node, shown: &str| self.row(item, kind, shown, id(self.all, name, item));
        let Yaml::List(items) = &node.value else { return row(node, name).into_iter().collect() };
        let ends = |item: &Node| !matches!(&item.value, Yaml::Map(entries) if entries.iter().any(|entry| &*entry.key == "when"));
        if let Some(after) = items.iter().position(ends).and_then(|last| items.get(last + 1)) {
            let message = "this row is never reached: the one before it has no `when`";
            self.all.report(Diagnostic::new(codes::UNREACHABLE, after.span.clone(), message).hint("put the row without `when` last"));
        }
        items.iter().enumerate().filter_map(|(i, item)| row(item, &format!("{name}[{i}]"))).collect()
    }

    fn row(&self, node: &Node, kind: Kind, name: &str, id: RowId) -> Option<Row> {
        if let Some(word) = node.as_text() {
            let call = if word == "ignore" { None } else { Some(self.function(node, Role::Handler)?) };
            return Some(Row { call, ..empty(id, name, &node.span) });
        }
        let mut fields = Fields::of(self.all, node, kind.what())?;
        let row = self.fill(&mut fields, kind, name, id, &node.span);
        fields.finish();
        Some(row)
    }

    /// Reads the keys of a row out of a map that may have others.
    pub(super) fn fill(&self, fields: &mut Fields<'_>, kind: Kind, name: &str, id: RowId, at: &SourceSpan) -> Row {
        let mut row = empty(id, name, at);
        if kind != Kind::Idle {
            let when = |all: &Collected, node: &Node| expression::when(all, node, self.plugin, kind.allowed(), expression::ROW);
            row.when = fields.read("when", when).map(|when| when.function);
            row.call = fields.read("call", |_, node| self.function(node, Role::Handler));
        }
        if kind.has_message() {
            row.limit = fields.read("limit", values::rate);
            row.schema = fields.read("schema", values::schema);
            row.validate = fields.read("validate", |_, node| self.function(node, Role::Validate));
            row.transform = fields.read("transform", |_, node| self.function(node, Role::Transform));
            fields.exclude("fail", &["call", "transform", "set", "leave", "join", "to", "reply", "send", "close"]);
        }
        let allowed = kind.allowed().with_result(fields.has("call"));
        if kind.has_message() {
            row.fail = fields.read("fail", |all, node| effects::fail(all, node, allowed));
        }
        if kind.has_connection() {
            row.set = fields.read("set", |all, node| effects::set(all, node, allowed)).unwrap_or_default();
            row.leave = fields.read("leave", |_, node| effects::leave(self, node, allowed)).unwrap_or_default();
            row.join = fields.read("join", |_, node| effects::join(self, node, allowed)).unwrap_or_default();
        }
        if kind != Kind::Idle {
            row.to = effects::publish(self, fields, allowed, kind.has_message(), kind.has_connection());
        }
        if kind.has_connection() || matches!(kind, Kind::Http | Kind::Idle) {
            fields.exclude("reply", &["send"]);
            let allowed = allowed.with_recovery(row.join.iter().any(|join| join.recover.is_some()));
            let reply = |node| effects::reply(self, node, allowed);
            row.reply = fields.get("reply").or(fields.get("send")).and_then(reply);
        }
        if kind == Kind::Http {
            row.status = fields.read("status", effects::status);
        }
        if kind.has_connection() || kind == Kind::Idle {
            row.close = fields.read("close", |all, node| effects::close(all, node, allowed));
        }
        row
    }

    /// `messages:`
    pub(super) fn table(&self, node: &Node, kind: Kind, name: &str) -> Option<Table> {
        let Yaml::Map(entries) = &node.value else { return self.all.wrong_type(node, "a map of rows by message type") };
        let mut table = Table::default();
        for entry in entries {
            let rows = self.rows(&entry.value, kind, &format!("{name}.{}", entry.key));
            match &*entry.key {
                "_" => table.otherwise = Some(rows),
                key if Glob::is_glob(key) => table.globs.push((Glob::new(key), rows)),
                key => {
                    table.exact.insert(key.into(), rows);
                }
            }
        }
        Some(table)
    }

    /// A function by its name: `name`, or `plugin.name`.
    pub(super) fn function(&self, node: &Node, role: Role) -> Option<FnRef> {
        let written = values::text(self.all, node)?;
        if !is_function(&written) {
            let message = format!("`{written}` is not a valid function name");
            let hint = "write `name` for a function of this plugin, `plugin.name` for one of another";
            self.all.report(Diagnostic::new(codes::FUNCTION, node.span.clone(), message).hint(hint));
            return None;
        }
        let (plugin, name) = written.split_once('.').map_or((self.plugin.clone(), &*written), |(plugin, name)| (plugin.into(), name));
        Some(self.all.function(FnRef { plugin, name: name.into() }, role, &node.span))
    }
}

/// A row that does nothing.
fn empty(id: RowId, name: &str, at: &SourceSpan) -> Row {
    Row {
        id,
        name: name.into(),
        at: at.location.clone(),
        when: None,
        limit: None,
        schema: None,
        validate: None,
        transform: None,
        call: None,
        set: Vec::new(),
        leave: Vec::new(),
        join: Vec::new(),
        to: Vec::new(),
        reply: None,
        status: None,
        close: None,
        fail: None,
    }
}

/// The id of a row with this name, without its index in a list. A row is known by what makes it apply, not by its index: so it keeps
/// what was spent of its limit if another is put in front of it.
pub(super) fn id(all: &Collected, name: &str, row: &Node) -> RowId {
    let mut id = name.to_owned();
    if let Yaml::Map(entries) = &row.value {
        for key in ["every", "when"] {
            let written = entries.iter().find(|entry| &*entry.key == key).and_then(|entry| entry.value.as_text());
            written.into_iter().for_each(|text| id.extend([" ", key, " ", text]));
        }
    }
    all.row_id(&id)
}

/// Whether a word has the shape of a function's name.
pub(super) fn is_function(word: &str) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    word.len() <= 128 && word.split_once('.').map_or(is_name(word), |(plugin, name)| super::plugins::is_plugin(plugin) && is_name(name))
}

#[cfg(test)]
mod tests {
    use super::super::load;

    fn ids(protocol: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("version: 1\nprotocols: {{ chat: {{ listen: localhost:1/, {protocol} }} }}\n");
        std::fs::write(folder.path().join("routes.yaml"), text).unwrap();
        let loaded = load(&folder.path().join("routes.yaml"), &|_| None);
        assert_eq!(loaded.diagnostics, []);
        loaded.plan.unwrap().rows().map(|row| row.id.name().to_string()).collect()
    }

    #[test]
    fn a_row_is_known_by_what_makes_it_apply() {
        let one = "{ when: $.a == 1, limit: 1/1h, reply: { n: 1 } }";
        assert_eq!(ids("messages: { say: { reply: { n: 1 } } }"), ["chat.messages.say"]);
        assert_eq!(ids(&format!("messages: {{ say: {one} }}")), ["chat.messages.say when $.a == 1"]);
        assert_eq!(
            ids(&format!("messages: {{ say: [{{ when: $.b, reply: {{ n: 0 }} }}, {one}, {one}, {{ reply: {{ n: 1 }} }}] }}")),
            ["chat.messages.say when $.b", "chat.messages.say when $.a == 1", "chat.messages.say when $.a == 1 #2", "chat.messages.say"]
        );
        // A type may look like the condition of another row.
        let alike = ids(&format!("messages: {{ say: {one}, 'say when $.a == 1': {{ reply: {{ n: 2 }} }} }}"));
        assert_ne!(alike[0], alike[1]);
        assert_eq!(
            ids(
                "every: [{ every: 5s, send: { n: 1 } }, { every: 5s, when: $conn.user == 1, send: { n: 2 } }, { every: 5s, send: { n: 3 } }]"
            ),
            ["chat.every every 5s", "chat.every every 5s when $conn.user == 1", "chat.every every 5s #2"]
        );
    }
}
