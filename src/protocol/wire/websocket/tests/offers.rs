//! Offers of permessage-deflate.

use crate::protocol::wire::websocket::negotiate;

const YES: Option<&str> = Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover");
const YES_15: Option<&str> = Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15");

fn answer(offer: &str) -> Option<&'static str> {
    negotiate(std::iter::once(offer))
}

#[test]
fn offers_that_can_be_kept() {
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate;client_max_window_bits=10;server_no_context_takeover",
        "permessage-deflate; client_max_window_bits=\"15\"; client_no_context_takeover",
        " permessage-deflate\t; client_max_window_bits = 8 ",
        "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits",
        "foo; bar=\"a, permessage-deflate; \\\" b\", permessage-deflate",
        ", , permessage-deflate",
    ] {
        assert_eq!(answer(offer), YES, "{offer}");
    }
    assert_eq!(answer("permessage-deflate; server_max_window_bits=15"), YES_15);
    assert_eq!(answer("permessage-deflate; server_max_window_bits=\"15\"; client_max_window_bits"), YES_15);
}

#[test]
fn offers_that_cannot() {
    for offer in [
        "",
        ",",
        "permessage-bzip2",
        "permessage-deflate2",
        "permessage-deflate; server_max_window_bits=14",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=015",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; client_max_window_bits=\"15",
        "permessage-deflate; client_max_window_bits=15\"",
        "permessage-deflate; client_max_window_bits; client_max_window_bits=15",
        "permessage-deflate; client_max_window_bits=+9",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=\"\"",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; unknown",
        "permessage-deflate;",
        "permessage-deflate; ; client_max_window_bits",
        "permessage-deflate=1",
        "foo; bar=\"a, permessage-deflate",
    ] {
        assert_eq!(answer(offer), None, "{offer}");
    }
}

#[test]
fn the_first_that_can_be_kept_of_several() {
    assert_eq!(answer("permessage-deflate; server_max_window_bits=10, permessage-deflate"), YES);
    assert_eq!(answer("permessage-deflate; server_max_window_bits=15, permessage-deflate"), YES_15);
    assert_eq!(answer("permessage-deflate; nonsense, permessage-deflate; server_max_window_bits=15"), YES_15);
    assert_eq!(negotiate(["permessage-deflate; x", "other", "permessage-deflate"].into_iter()), YES);
    assert_eq!(negotiate(["permessage-deflate; x", "other"].into_iter()), None);
    assert_eq!(negotiate(std::iter::empty()), None);
    // Quotes do not reach from one header into the next.
    assert_eq!(negotiate(["other; a=\"", "permessage-deflate"].into_iter()), YES);
}
