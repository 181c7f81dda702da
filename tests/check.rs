//! What `tramline check` says of sound and of broken files.

use std::path::Path;

use tramline::config::diagnostic::render;
use tramline::config::{Loaded, load};

fn nothing(_: &str) -> Option<String> {
    None
}

fn told(loaded: &Loaded) -> String {
    render(&loaded.diagnostics, &loaded.files)
}

#[test]
fn the_shipped_file_is_sound() {
    let loaded = load(Path::new("routes.yaml"), &nothing);
    assert_eq!(told(&loaded), "");
    let plan = loaded.plan.unwrap();
    assert_eq!(plan.protocols.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["workspace", "canvas", "agent"]);
    assert_eq!(loaded.plugins.sources.keys().map(|name| &**name).collect::<Vec<_>>(), ["agent", "canvas"]);
}
