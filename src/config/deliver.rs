//! `deliver:`: how an event is written to a protocol's clients.

use super::codes;
use super::diagnostic::Diagnostic;
use super::expression;
use super::fields::Fields;
use super::node::{Node, Yaml};
use super::plan::{DeliverForm, DeliverRow, Role};
use super::rows::{Rows, is_function};
use super::template::{self, AllowedRefs};
use super::values::flag;
use crate::model::template::{Reference, Root};

/// One form for all events, or a list of rows, of which the first whose `when` holds applies.
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
    let when = fields.read("when", |all, node| expression::when(all, node, rows.plugin, AllowedRefs::DELIVER, expression::DELIVER));
    let ignore = fields.read("ignore", flag).unwrap_or(false);
    let form = match fields.get("send") {
        Some(node) => form(rows, node),
        None if ignore => Some(Form::default()),
        None => fields.need("send").and(None),
    };
    fields.finish();
    let when_per_subscription = when.as_ref().is_some_and(|when| when.per_subscription);
    Some(DeliverRow { when: when.map(|when| when.function), when_per_subscription, ..always(form?) })
}

/// A form, and what it looks at. The default is `ignore`.
#[derive(Default)]
struct Form {
    form: Option<DeliverForm>,
    per_subscription: bool,
    positioned: bool,
}

fn always(Form { form, per_subscription, positioned }: Form) -> DeliverRow {
    DeliverRow { when: None, when_per_subscription: false, form, per_subscription, positioned }
}

/// Reads a form. A function may look at anything it is given.
fn form(rows: &Rows<'_>, node: &Node) -> Option<Form> {
    match node.as_text() {
        Some("ignore") => Some(Form::default()),
        Some(word) if is_function(word) => {
            let call = DeliverForm::Call(rows.function(node, Role::Deliver)?);
            Some(Form { form: Some(call), per_subscription: true, positioned: false })
        }
        _ => {
            let template = template::template(rows.all, node, AllowedRefs::DELIVER)?;
            let references = template.references();
            // The position is the same for all who know it, so that two texts are enough.
            let is_position = |r: &Reference| r.root == Root::Sub && r.path.first().is_some_and(|f| matches!(&**f, "offset" | "epoch"));
            let per_subscription = references.iter().any(|r| matches!(r.root, Root::Sub | Root::Conn) && !is_position(r));
            let positioned = references.iter().any(|r| is_position(r));
            Some(Form { form: Some(DeliverForm::Template(template)), per_subscription, positioned })
        }
    }
}
