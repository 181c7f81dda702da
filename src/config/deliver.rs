//! `deliver:`: how an event is written to a protocol's clients.

use super::codes;
use super::diagnostic::Diagnostic;
use super::expression;
use super::fields::Fields;
use super::node::{Node, Yaml};
use super::plan::{DeliverForm, DeliverRow, Role};
use super::rows::{Rows, is_function};
use super::template::{self, Seen};
use super::values::flag;
use crate::model::template::Root;

/// One form for all events, or a list of rows of which the first counts that holds.
pub(super) fn deliver(rows: &Rows<'_>, node: &Node) -> Vec<DeliverRow> {
    let Yaml::List(items) = &node.value else {
        return form(rows, node).map(always).into_iter().collect();
    };
    let ends = |item: &Node| !matches!(&item.value, Yaml::Map(entries) if entries.iter().any(|entry| &*entry.key == "when"));
    if let Some(after) = items.iter().position(ends).and_then(|last| items.get(last + 1)) {
        let message = "this row is never reached: the one before it has no `when`";
        rows.all.report(Diagnostic::new(codes::UNREACHABLE, after.span.clone(), message));
    }
    items.iter().filter_map(|item| row(rows, item)).collect()
}

fn row(rows: &Rows<'_>, node: &Node) -> Option<DeliverRow> {
    if node.as_text().is_some() {
        return form(rows, node).map(always);
    }
    let mut fields = Fields::of(rows.all, node, "a row of `deliver`")?;
    fields.exclude("send", &["ignore"]);
    let when = fields.read("when", |all, node| expression::when(all, node, rows.plugin, Seen::DELIVER, expression::DELIVER));
    let ignore = fields.read("ignore", flag).unwrap_or(false);
    let form = match fields.get("send") {
        Some(node) => form(rows, node),
        None if ignore => Some((None, false)),
        None => fields.need("send").and(None),
    };
    fields.finish();
    let (form, per_subscription) = form?;
    let when_per_subscription = when.as_ref().is_some_and(|when| when.per_subscription);
    Some(DeliverRow { when: when.map(|when| when.function), when_per_subscription, form, per_subscription })
}

fn always((form, per_subscription): (Option<DeliverForm>, bool)) -> DeliverRow {
    DeliverRow { when: None, when_per_subscription: false, form, per_subscription }
}

/// The form, and whether it looks at the subscription or connection. A function may look at anything it is given.
fn form(rows: &Rows<'_>, node: &Node) -> Option<(Option<DeliverForm>, bool)> {
    match node.as_text() {
        Some("ignore") => Some((None, false)),
        Some(word) if is_function(word) => Some((Some(DeliverForm::Call(rows.function(node, Role::Deliver)?)), true)),
        _ => {
            let template = template::template(rows.all, node, Seen::DELIVER)?;
            let per_subscription = template.references().iter().any(|reference| matches!(reference.root, Root::Sub | Root::Conn));
            Some((Some(DeliverForm::Template(template)), per_subscription))
        }
    }
}
