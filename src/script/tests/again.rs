//! What becomes of the programs of one loading in the next.

use std::collections::BTreeMap;

use super::*;

const TEXTS: [(&str, &str); 3] =
    [("alone", "fn f(msg) { 1 }\nfn g(msg) { 2 }"), ("lib", "fn one() { 1 }"), ("p", "import \"lib\" as lib;\nfn f(msg) { lib::one() }")];

#[test]
fn what_is_the_same_is_not_checked_again() {
    let uses = [used("alone.f", Role::Handler), used("p.f", Role::Validate)];
    let built = |texts: &[(&str, &str)], uses: &[FunctionUse], expressions: &[ExpressionUse], previous: Option<&Scripts>| {
        let (scripts, diagnostics) = Scripts::build(&plugins(texts), uses, expressions, previous);
        assert_eq!(lines(&diagnostics), Vec::<String>::new());
        scripts
    };
    let ids = |scripts: &Scripts| -> BTreeMap<PluginName, u64> { scripts.programs().map(|p| (p.name.clone(), p.id)).collect() };
    let first = built(&TEXTS, &uses, &[], None);
    let is_same = |next: &Scripts| {
        let (before, now) = (ids(&first), ids(next));
        ["alone", "lib", "p"].map(|name| before.get(name) == now.get(name))
    };
    let edited = |plugin: usize| {
        let mut texts = TEXTS.map(|(name, text)| (name, text.to_owned()));
        texts[plugin].1.push_str("\n// More.");
        texts
    };
    assert_eq!(is_same(&built(&TEXTS, &uses, &[], Some(&first))), [true, true, true]);
    for (plugin, expected) in [(0, [false, true, true]), (1, [true, false, false]), (2, [true, true, false])] {
        let texts = edited(plugin);
        let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, &**text)).collect();
        assert_eq!(is_same(&built(&texts, &uses, &[], Some(&first))), expected, "{plugin} is edited");
    }
    for uses in [vec![], vec![used("alone.g", Role::Handler)], vec![used("alone.f", Role::Transform)]] {
        let uses: Vec<FunctionUse> = uses.into_iter().chain([used("p.f", Role::Validate)]).collect();
        assert_eq!(is_same(&built(&TEXTS, &uses, &[], Some(&first))), [false, true, true], "{uses:?}");
    }
    let expressions = [expression("alone.e", "msg.n == 1", &["msg"])];
    assert_eq!(is_same(&built(&TEXTS, &uses, &expressions, Some(&first))), [false, true, true]);
    // Errors are reported also where the version before had none.
    let wrong = [used("alone.f", Role::Handler), used("alone.h", Role::Handler), used("p.f", Role::Validate)];
    let (_, diagnostics) = Scripts::build(&plugins(&TEXTS), &wrong, &[], Some(&first));
    assert_eq!(diagnostics.len(), 1);
    let (_, diagnostics) = Scripts::build(&plugins(&[TEXTS[0], TEXTS[2]]), &uses, &[], Some(&first));
    assert_eq!(diagnostics.len(), 1, "what it imports is gone");
}
