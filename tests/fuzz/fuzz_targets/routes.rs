//! A routes file may hold anything: it is refused or taken, the reasons can be told, and its expressions compile or are refused.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tramline::config::diagnostic::render;
use tramline::config::load;
use tramline::script::Scripts;

/// In a folder of its own: files next to it could be included.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("tramline-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder.join("routes.yaml")
});

fuzz_target!(|text: &[u8]| {
    std::fs::write(&*FILE, text).expect("a temporary file");
    let loaded = load(&FILE, &|name| (name.len() < 5).then(|| name.to_lowercase()));
    assert_eq!(loaded.plan.is_some(), loaded.diagnostics.is_empty());
    render(&loaded.diagnostics, &loaded.files);
    if loaded.plan.is_some() {
        let (_, diagnostics) = Scripts::build(&loaded.plugins, &loaded.functions, &loaded.expressions, None);
        render(&diagnostics, &loaded.files);
    }
});
