//! What the path of a message costs between the socket and the outbox, without either: reading it, deciding, writing it for those
//! who get it, finding a channel, calling a script. One message is one iteration.
//!
//! `make bench`, or `cargo bench --bench path -- [NAME]`. On a machine that does other things, count instructions instead, of a
//! build with `CARGO_PROFILE_BENCH_DEBUG=line-tables-only`:
//! `valgrind --tool=callgrind --toggle-collect='*path::once_NAME*' target/release/deps/path-… --bench --sample-count 1 --sample-size 1000 NAME`.
#![allow(clippy::unwrap_used, reason = "a program for developers")]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::BytesCount;
use serde_json::Value;
use tramline::config;
use tramline::hub::{Connection, Hub, Packet, Recipient, Render};
use tramline::limits::SharedLimits;
use tramline::model::chance::Chance;
use tramline::model::{ChannelName, Clock, ConnView, Event, Json, Now, SubView, json};
use tramline::pipeline::deliver::Renderer;
use tramline::pipeline::{self, ClientLimits, Decision, Effect, Env, EventEffect, Input, Moment, Snapshot, Spending, Spent};
use tramline::protocol::Frame;
use tramline::protocol::wire::Wire;
use tramline::protocol::wire::websocket::{self, Decoder};
use tramline::runtime::{self, Counters, Runtime};
use tramline::telemetry::metrics::Metrics;

const ROUTES: &str = r#"
version: 1
store: "sqlite::memory:"
protocols:
  bench:
    listen: 127.0.0.1:0/ws
    type: /op
    limits: { rate: 1000000000/s }
    messages:
      pub: { to: "{$.ch}", data: $.data }
      echo: { reply: { op: echo, data: $.data } }
      bare: { to: "{$.ch}", data: $.data }
      whole: { transform: whole, to: "{$.ch}", data: $.data }
      halves: { validate: checked, transform: enriched, to: "{$.ch}", data: $.data }
      drop: { transform: dropped, to: "{$.ch}", data: $.data }
      field: { transform: field, to: "{$.ch}", data: $.data }
    deliver: { ch: $event.channel, data: $event.data }
channels:
  "{name}": {}
"#;

/// `whole`: ten lines with two drops on conditions, a computed channel, a level from a role, a score and one member removed, which
/// makes 12 reads, 3 writes and 5 method calls. `checked` and `enriched`: the same in two.
const PLUGIN: &str = r#"
fn whole(msg) {
    if msg.text == () || msg.text.len() == 0 { return; }
    if msg.user.role == "banned" || msg.text.starts_with("/") { return; }
    msg.ch = "room-" + msg.room;
    msg.level = if msg.role == "admin" { 9 } else if msg.role == "guest" { 0 } else { 1 };
    msg.score = msg.text.len() * 2 + msg.level + msg.tags.len();
    if msg.score > 1000 { msg.score = 1000; }
    msg.remove("secret");
    msg
}
fn checked(msg) {
    if msg.text == () || msg.text.len() == 0 { throw "text is missing"; }
    if msg.user.role == "banned" || msg.text.starts_with("/") { return false; }
    true
}
fn enriched(msg) {
    msg.ch = "room-" + msg.room;
    msg.level = if msg.role == "admin" { 9 } else if msg.role == "guest" { 0 } else { 1 };
    msg.score = msg.text.len() * 2 + msg.level + msg.tags.len();
    if msg.score > 1000 { msg.score = 1000; }
    msg.remove("secret");
    msg
}
fn dropped(msg) {
    if msg.role == "admin" { return; }
    msg
}
fn field(msg) {
    msg.ch = "room-" + msg.room;
    msg
}
"#;

/// A chat message of 216 bytes, or of 2.1 KB with what hangs on it.
fn chat(op: &str, large: bool) -> Frame {
    let item =
        |n: u32| format!(r#"{{"id":"f-{n}","name":"holiday {n}.jpg","size":{},"tags":["sea","sun"],"at":{{"x":1.5,"y":null}}}}"#, n * 7919);
    let more: String = if large { format!(r#""files":[{}],"#, (10..33).map(item).collect::<Vec<_>>().join(",")) } else { String::new() };
    let start = format!(r#"{{"op":"{op}","ch":"c1","room":"lobby","text":"Hello! How is it going?","role":"admin","secret":"s3cr3t","#);
    let end = r#""user":{"id":"u-1042","name":"Ada"},"at":1732147200123,"tags":["a","b"],"data":{"n":1,"mood":"fine"}}"#;
    Frame::Text(format!("{start}{more}{end}").into())
}

fn main() {
    divan::main();
}

fn text(bytes: usize) -> String {
    "The quick brown fox jumps over the lazy dog. ".chars().cycle().take(bytes).collect()
}

fn publish() -> Frame {
    Frame::Text(format!(r#"{{"op":"pub","ch":"c1","data":"{}"}}"#, text(128)).into())
}

fn echo() -> Frame {
    Frame::Text(format!(r#"{{"op":"echo","data":"{}"}}"#, text(128)).into())
}

fn ready(routes: &str) -> Runtime {
    let folder: PathBuf = tempfile::tempdir().unwrap().keep();
    std::fs::create_dir(folder.join("plugins")).unwrap();
    std::fs::write(folder.join("routes.yaml"), routes).unwrap();
    std::fs::write(folder.join("plugins").join("bench.rhai"), PLUGIN).unwrap();
    let loaded = config::load(&folder.join("routes.yaml"), &|_| None);
    std::fs::remove_dir_all(&folder).unwrap();
    let files = loaded.files.clone();
    let built = runtime::build(loaded, None);
    built.unwrap_or_else(|found| panic!("{}", config::diagnostic::render(&found, &files)))
}

/// A client that the router knows, and no socket.
struct Client {
    snapshot: Arc<Snapshot>,
    connection: Connection,
    limits: ClientLimits,
    now: Now,
}

impl Client {
    fn new() -> Self {
        let (runtime, now) = (Arc::new(ready(ROUTES)), Now::read());
        let limits = SharedLimits::new(&runtime.plan, None, now);
        let counters = Counters::new(&runtime.plan, &Arc::new(Metrics::new(now)), now);
        let snapshot = Arc::new(Snapshot::new(runtime, limits.into(), counters.into(), Arc::new(Hub::new(Vec::new())), Clock::default()));
        let plan = &snapshot.runtime.plan.protocols[0];
        let view = ConnView {
            id: "c-1".into(),
            protocol: plan.name.clone(),
            user: Some("ada".into()),
            session: None,
            ip: "127.0.0.1".into(),
            opened_ms: now.wall_ms,
            state: Json::empty_object(),
            request: Arc::default(),
            origin: Default::default(),
        };
        let metrics = snapshot.counters.protocol(plan.id).unwrap().clone();
        let connection = Connection::new(1, plan.id, now, view, &plan.limits, Wire::WebSocket { compress: None }, metrics);
        let limits = ClientLimits::new(plan, now);
        Self { connection, limits, now, snapshot }
    }

    fn decide(&mut self, frame: &mut Frame) -> Decision {
        let (mut chance, mut spent) = (Chance::System, Spent::default());
        let mut limits = Spending { shared: &self.snapshot.limits, client: Some(&mut self.limits), spent: &mut spent };
        let mut env = Env { now: self.now, chance: &mut chance, limits: &mut limits, pending: false, trial: false };
        let decision = pipeline::decide(&self.snapshot, Input::Connection(&self.connection, Moment::Message(frame)), &mut env);
        assert!(decision.fault.is_none(), "{:?}", decision.fault);
        decision
    }
}

#[inline(never)]
fn once_decide(client: &mut Client, frame: &mut Frame) -> Decision {
    client.decide(frame)
}

#[divan::bench(args = [("publish", publish()), ("echo", echo())].map(Named))]
fn decide(bencher: Bencher<'_, '_>, message: &Named<Frame>) {
    let mut client = Client::new();
    let mut frame = message.0.1.clone();
    bencher.bench_local(|| once_decide(&mut client, &mut frame));
}

/// What a script adds to deciding a message: `bare` has none. To be compared with `script_by_hand`, which decides nothing.
#[divan::bench(args = ["bare", "whole", "halves", "drop", "field"].into_iter().flat_map(|op| [(op, chat(op, false)), (op, chat(op, true))]).map(Named))]
fn script(bencher: Bencher<'_, '_>, message: &Named<Frame>) {
    let mut client = Client::new();
    let mut frame = message.0.1.clone();
    bencher.bench_local(|| once_decide(&mut client, &mut frame));
}

/// What `whole` does, in Rust over a tree: text to text.
#[inline(never)]
fn by_hand(text: &str) -> Option<String> {
    let mut msg: Value = serde_json::from_str(text).ok()?;
    let object = msg.as_object_mut()?;
    let text = object.get("text")?.as_str()?;
    let length = text.chars().count();
    if length == 0 || text.starts_with('/') || object.get("user")?.get("role").is_some_and(|role| role == "banned") {
        return None;
    }
    let channel = format!("room-{}", object.get("room")?.as_str()?);
    let level = match object.get("role")?.as_str()? {
        "admin" => 9,
        "guest" => 0,
        _ => 1,
    };
    let score = length * 2 + level + object.get("tags")?.as_array()?.len();
    object.insert("ch".into(), channel.into());
    object.insert("level".into(), level.into());
    object.insert("score".into(), score.min(1000).into());
    object.shift_remove("secret");
    serde_json::to_string(&msg).ok()
}

#[divan::bench(args = [chat("whole", false), chat("whole", true)].map(|frame| Named(("rust", frame))))]
fn script_by_hand(bencher: Bencher<'_, '_>, message: &Named<Frame>) {
    let text = message.0.1.text().unwrap_or_default();
    assert!(by_hand(text).is_some());
    bencher.bench_local(|| by_hand(text));
}

#[inline(never)]
fn once_render(renderer: &mut Renderer<'_>, event: &Event, client: &Client, subscription: &SubView) -> Option<Packet> {
    renderer.begin();
    renderer.render(event, Recipient { connection: &client.connection, subscription: Some(subscription), view: None })
}

#[divan::bench]
fn render(bencher: Bencher<'_, '_>) {
    let mut client = Client::new();
    let effect = client.decide(&mut publish()).effects.pop();
    let Some(Effect::Event(EventEffect::Publish { channel, event, .. })) = effect else { panic!("{effect:?}") };
    let subscription = SubView { channel: channel.clone(), key: "".into(), meta: None, positioned: false };
    let event = Event { new: event, channel: Some(channel), offset: 1, epoch: 1, seq: 0 };
    let mut renderer = Renderer::new(&client.snapshot, client.now);
    bencher.bench_local(|| once_render(&mut renderer, &event, &client, &subscription));
}

#[inline(never)]
fn once_parse(text: &Json) -> Json {
    Json::parse(text.shared()).unwrap()
}

#[divan::bench(args = [("text", text_message(128)), ("text", text_message(4096)), ("nested", nested_message())].map(Named))]
fn parse(bencher: Bencher<'_, '_>, message: &Named<Json>) {
    bencher.counter(BytesCount::of_str(message.0.1.as_str())).bench_local(|| once_parse(&message.0.1));
}

fn text_message(bytes: usize) -> Json {
    Json::of(&serde_json::json!({ "op": "pub", "ch": "c1", "data": text(bytes) }))
}

fn nested_message() -> Json {
    let item = |n: u32| serde_json::json!({ "id": n, "name": text(12), "tags": ["a", "b"], "at": { "x": n as f64 / 3.0, "y": null } });
    Json::of(&serde_json::json!({ "op": "pub", "ch": "c1", "data": (0..40).map(item).collect::<Vec<_>>() }))
}

#[inline(never)]
fn once_get<'a>(message: &'a Json, path: &[Box<str>]) -> Option<&'a str> {
    json::get(message.as_str(), path)
}

#[divan::bench]
fn get(bencher: Bencher<'_, '_>) {
    let (message, path) = (text_message(4096), [Box::from("data")]);
    bencher.bench_local(|| once_get(&message, &path).map(str::len));
}

#[inline(never)]
fn once_resolve(runtime: &Runtime, name: &str) -> ChannelName {
    runtime.channels.resolve(name).unwrap().0
}

/// The last of so many patterns.
#[divan::bench(args = [1, 20, 200])]
fn resolve(bencher: Bencher<'_, '_>, patterns: usize) {
    let channels: String = (1..=patterns).map(|n| format!("  \"kind{n}:{{id}}\": {{}}\n")).collect();
    let runtime = ready(&format!("{}\nchannels:\n{channels}", ROUTES.split("channels:").next().unwrap()));
    let name = format!("kind{patterns}:1042");
    bencher.bench_local(|| once_resolve(&runtime, black_box(&name)));
}

/// A message as a client sends it.
fn masked(bytes: usize) -> Vec<u8> {
    let mut frame = websocket::message(&Frame::Text(text(bytes).into())).to_vec();
    let header = frame.len() - bytes;
    frame[1] |= 0x80;
    let mask = [1, 2, 3, 4];
    frame[header..].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    frame.splice(header..header, mask);
    frame
}

#[divan::bench(args = [16, 128, 1024])]
fn decode(bencher: Bencher<'_, '_>, bytes: usize) {
    let (frame, mut decoder) = (masked(bytes), Decoder::new(1 << 20, false));
    bencher.counter(BytesCount::new(bytes)).bench_local(|| decoder.next(&mut black_box(&frame[..])));
}

#[divan::bench(args = [16, 128, 1024])]
fn encode(bencher: Bencher<'_, '_>, bytes: usize) {
    let frame = Frame::Text(text(bytes).into());
    bencher.counter(BytesCount::new(bytes)).bench_local(|| websocket::message(black_box(&frame)));
}

#[divan::bench(args = [1024])]
fn compress(bencher: Bencher<'_, '_>, bytes: usize) {
    let frame = Frame::Text(text(bytes).into());
    bencher.counter(BytesCount::new(bytes)).bench_local(|| websocket::compressed(black_box(&frame)));
}

struct Named<T>((&'static str, T));

impl std::fmt::Display for Named<Frame> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} B", self.0.0, self.0.1.len())
    }
}

impl std::fmt::Display for Named<Json> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} B", self.0.0, self.0.1.as_str().len())
    }
}
