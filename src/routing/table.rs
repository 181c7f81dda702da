//! The running configuration as one table: from where, through what, to where. For people and for REST.

use serde::Serialize;

use crate::config::plan::{DeliverForm, Plan, Publish, Rate, Reply, Row, SourceKind, Table, Target};
use crate::model::template::Text;

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteEntry {
    /// Protocol and message type, HTTP row, or source.
    pub from: String,
    /// Its limits.
    pub limit: String,
    /// The functions it runs.
    pub script: String,
    /// The channels it publishes to, or what happens instead.
    pub to: String,
    /// Its place in the routes file.
    pub at: String,
}

/// The whole configuration, in the order of the file.
pub fn table(plan: &Plan) -> Vec<RouteEntry> {
    let mut entries = Vec::new();
    for protocol in &plan.protocols {
        let name = &protocol.name;
        let rate = protocol.limits.rate.as_ref();
        let mut add = |what: String, rows: &[Row], limited: bool| {
            let rate = if limited { rate } else { None };
            entries.extend(rows.iter().map(|row| entry(format!("{name} {what}"), row, rate)));
        };
        add("(open)".into(), &protocol.open, false);
        each(&protocol.messages, |kind, rows| add(kind.into(), rows, true));
        for (period, row) in &protocol.every {
            add(format!("(every {})", humantime::format_duration(*period)), std::slice::from_ref(row), false);
        }
        if let Some(idle) = &protocol.idle {
            add(format!("(idle {})", humantime::format_duration(idle.after)), std::slice::from_ref(&idle.row), false);
        }
        add("(close)".into(), &protocol.close, false);
        for http in &protocol.http {
            add(format!("{} {}", http.method, http.path), &http.rows, false);
        }
        for form in protocol.deliver.iter().filter_map(|row| row.form.as_ref()) {
            if let DeliverForm::Call(function) = form {
                entries.push(RouteEntry {
                    from: format!("{name} (deliver)"),
                    limit: String::new(),
                    script: format!("{}.{}", function.plugin, function.name),
                    to: "each subscriber".into(),
                    at: protocol.at.to_string(),
                });
            }
        }
    }
    for source in &plan.sources {
        let kind = match &source.kind {
            SourceKind::Every { period, .. } => format!("every {}", humantime::format_duration(*period)),
            SourceKind::Http { method, path, .. } => format!("{method} {path}"),
        };
        each(&source.messages, |message, rows| {
            let what = if message == "_" { String::new() } else { format!(" {message}") };
            entries.extend(rows.iter().map(|row| entry(format!("{} ({kind}){what}", source.name), row, None)));
        });
    }
    entries
}

/// The rows of a table by what selects them, in a fixed order.
fn each<'t>(table: &'t Table, mut see: impl FnMut(&'t str, &'t [Row])) {
    let mut exact: Vec<_> = table.exact.iter().collect();
    exact.sort_by(|a, b| a.1.first().map(|row| &row.at).cmp(&b.1.first().map(|row| &row.at)));
    exact.into_iter().for_each(|(kind, rows)| see(kind, rows));
    table.globs.iter().for_each(|(glob, rows)| see(glob.as_str(), rows));
    if let Some(rows) = &table.otherwise {
        see("_", rows);
    }
}

fn entry(from: String, row: &Row, rate: Option<&Rate>) -> RouteEntry {
    let functions = [&row.validate, &row.transform, &row.call];
    let mut script: Vec<String> = functions.into_iter().flatten().map(|f| format!("{}.{}", f.plugin, f.name)).collect();
    if let Some(Reply::Call(function)) = &row.reply {
        script.push(format!("{}.{}", function.plugin, function.name));
    }
    if row.when.is_some() {
        script.insert(0, "when …".into());
    }
    let limits: Vec<String> = [rate, row.limit.as_ref()].into_iter().flatten().map(show_rate).collect();
    RouteEntry { from, limit: limits.join(", "), script: script.join(" → "), to: outcome(row), at: row.at.to_string() }
}

fn show_rate(rate: &Rate) -> String {
    let burst = if rate.burst == rate.count { String::new() } else { format!(" burst {}", rate.burst) };
    format!("{}/{}{burst}", rate.count, humantime::format_duration(rate.per))
}

fn outcome(row: &Row) -> String {
    let mut parts: Vec<String> = row.to.iter().map(target).collect();
    parts.extend(row.leave.iter().map(|name| format!("leave {}", name.source())));
    parts.extend(row.join.iter().map(|join| format!("join {}", join.channel.source())));
    if let Some((_, message)) = &row.fail {
        parts.push(format!("fail: {}", message.source()));
    }
    if row.reply.is_some() {
        parts.push("reply".into());
    }
    if let Some((code, _)) = &row.close {
        parts.push(format!("close {code}"));
    }
    if parts.is_empty() { "—".into() } else { parts.join(", ") }
}

fn target(publish: &Publish) -> String {
    let named = |kind: &str, text: &Text| format!("{kind} {}", text.source());
    let to = match &publish.target {
        Target::Channel(text) => text.source(),
        Target::Client(text) => named("client", text),
        Target::User(text) => named("user", text),
        Target::Session(text) => named("session", text),
    };
    match publish.kind.as_ref().map(Text::source) {
        Some(kind) => format!("{to} as {kind}"),
        None => to,
    }
}
