//! Updates that the network directs, in virtual time.

use std::time::Duration;

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pure::Pure;
use consensus_core::event::Event;
use consensus_core::io::{Effect, EffectResult, Input, LocalId, Outcome, StateFile};
use consensus_core::limits::{DRAIN_LIMIT, INSTALL_TIMEOUT, MAX_RESTART_AFTER, PREPARE_TIMEOUT};
use consensus_core::node::Config;
use consensus_core::peer::orchestrator;
use consensus_core::release::manifest::Manifest;
use consensus_core::release::signature::{ReleaseKeys, sign};
use consensus_core::tunnel::Mode;
use consensus_core::update::{Install, RolledBack, Settings, Standing, Way};
use consensus_core::wire::message::{Message, UpdateApply, UpdateFailed, UpdatePrepare, UpdateReady};
use serde_json::{Value, json};

use super::streams::{open, send};
use super::world::{UNIX, Weather, World, config};
use super::{SECOND, control, hello_reply, outcomes, proxy};

const PATH: &str = "/state/downloads/release.tgz";

pub(super) fn manifest(version: &str) -> Manifest {
    Manifest {
        download_url: Some("https://releases.example/node.tgz".into()),
        tarball_sha256: Some(format!("sha256:{}", "ab".repeat(32))),
        ..Manifest::of_this_release(version, "def", "linux-x64")
    }
}

/// A node with these settings that is connected, and whose downloads hold version 0.2.0.
fn world_with(updates: Settings) -> World {
    let mut world = World::new(Config { updates, ..config(Some(Mode::Control)) }, 1);
    world.archive = Ok(Box::new(Manifest::of_this_release("0.2.0", "def", "linux-x64")));
    world.run_for(SECOND);
    world
}

fn world() -> World {
    world_with(Settings::default())
}

pub(super) fn prepare(world: &mut World, id: &str, update_id: &str, manifest: Manifest) {
    let prepare = UpdatePrepare { id: id.into(), update_id: update_id.into(), manifest: Box::new(manifest) };
    send(world, prepare.encode(1));
}

pub(super) fn apply(world: &mut World, id: &str, update_id: &str, restart_after_ms: u64) {
    send(world, UpdateApply { id: id.into(), update_id: update_id.into(), restart_after_ms }.encode(1));
}

/// What the server was told about updates: `ready REPLY_TO`, `ack REPLY_TO`, `CODE REPLY_TO`.
fn told(world: &World) -> Vec<String> {
    let message = |(_, event): &(Duration, orchestrator::Event)| match event {
        orchestrator::Event::Message(message) => match &**message {
            Message::UpdateReady(ready) => Some(format!("ready {}", ready.reply_to)),
            Message::Ack(ack) => Some(format!("ack {}", ack.reply_to)),
            Message::UpdateFailed(failed) => Some(format!("{} {}", failed.code, failed.reply_to)),
            _ => None,
        },
        _ => None,
    };
    world.server_events.iter().filter_map(message).collect()
}

fn last_failure(world: &World) -> UpdateFailed {
    let failure = |(_, event): &(Duration, orchestrator::Event)| match event {
        orchestrator::Event::Message(message) => match &**message {
            Message::UpdateFailed(failed) => Some(failed.clone()),
            _ => None,
        },
        _ => None,
    };
    world.server_events.iter().rev().find_map(failure).unwrap()
}

fn last_ready(world: &World) -> UpdateReady {
    let ready = |(_, event): &(Duration, orchestrator::Event)| match event {
        orchestrator::Event::Message(message) => match &**message {
            Message::UpdateReady(ready) => Some(ready.clone()),
            _ => None,
        },
        _ => None,
    };
    world.server_events.iter().rev().find_map(ready).unwrap()
}

pub(super) fn installs(world: &World) -> Vec<Install> {
    let install = |(_, effect): &(_, Effect)| match effect {
        Effect::Install(install) => Some(install.clone()),
        _ => None,
    };
    world.updates.iter().filter_map(install).collect()
}

fn downloads(world: &World) -> usize {
    world.updates.iter().filter(|(_, effect)| matches!(effect, Effect::Download(_))).count()
}

/// What the local API says of updates.
fn status(world: &mut World) -> Value {
    let id = world.responses.len() as u64 + 1000;
    world.local(id, "GET", "/health", "localhost", "");
    world.local(id + 1, "GET", "/node/version", "localhost", "");
    let body = |id| serde_json::from_slice::<Value>(&world.responses[&LocalId(id)].body).unwrap();
    assert_eq!(body(id)["update"], body(id + 1)["update"]);
    body(id)["update"].clone()
}

#[test]
fn an_update_is_prepared_and_applied_and_the_node_ends_for_its_supervisor() {
    let mut world = world();
    assert_eq!(status(&mut world)["state"], "none");
    prepare(&mut world, "p", "u-1", manifest("0.2.0"));
    let ready = last_ready(&world);
    assert_eq!(
        ready,
        UpdateReady {
            reply_to: "p".into(),
            update_id: "u-1".into(),
            artifact_path: PATH.into(),
            sha256: "ab".repeat(32),
            current_version: "0.1.0".into(),
            target_version: "0.2.0".into(),
        }
    );
    let Effect::Download(download) = &world.updates[0].1 else { panic!("{:?}", world.updates) };
    assert_eq!(**download, manifest("0.2.0"));
    assert_eq!(
        status(&mut world),
        json!({"state": "prepared", "update_id": "u-1", "version": "0.2.0", "on_probation": false})
    );
    assert!(installs(&world).is_empty());

    let asked = world.now;
    apply(&mut world, "a", "u-1", 1500);
    assert_eq!(told(&world), ["ready p", "ack a"]);
    assert_eq!(status(&mut world)["state"], "draining");
    assert!(installs(&world).is_empty(), "not before the time that the server named");
    world.run_for(3 * SECOND);
    let installed = installs(&world);
    assert_eq!(
        installed,
        [Install {
            update_id: "u-1".into(),
            artifact: PATH.into(),
            version: "0.2.0".into(),
            sha256: [0xab; 32],
            by_command: false,
        }]
    );
    assert_eq!(world.closes, [(1012, "node update apply requested".to_string())]);
    let finish = world.finish.clone().unwrap();
    assert_eq!((finish.outcome, finish.outcome.exit_code()), (Outcome::Updating, 0));
    assert!(world.files.contains_key(&StateFile::SpentTickets), "what was spent is for the next process");
    let at =
        world.events.iter().find(|(_, event)| matches!(event, Event::UpdateInstalling { .. })).unwrap().0;
    assert!(at >= asked + Duration::from_millis(1500));
    world.run_for(600 * SECOND);
    assert_eq!(world.opened.len(), 1, "a node that ended does not come back");
}

#[test]
fn what_runs_already_is_ready_without_a_file() {
    let mut world = world();
    prepare(&mut world, "p", "u", Manifest::of_this_release("0.1.0", "abc", "linux-x64"));
    let ready = last_ready(&world);
    assert_eq!((ready.artifact_path.as_str(), ready.sha256.as_str()), ("", ""));
    assert!(world.updates.is_empty());
    apply(&mut world, "a", "u", 0);
    assert_eq!(told(&world)[1], "update_not_prepared a");
}

#[test]
fn what_is_not_for_this_node_is_refused_with_the_reason_and_never_downloaded() {
    type Change = fn(&mut Manifest);
    let cases: [(Change, &str); 13] = [
        (|m| m.implementation = Some("typescript".into()), "typescript"),
        (|m| m.artifact = "npm-tarball".into(), "npm-tarball"),
        (|m| m.product = "other\u{1b}".into(), "other"),
        (|m| m.platform = "linux-arm".into(), "linux-arm"),
        (|m| m.version = "latest".into(), "not a version"),
        (|m| m.version = "../../0.2.0".into(), "not a version"),
        (|m| m.download_url = None, "download_url"),
        (|m| m.download_url = Some("ftp://releases.example/x".into()), "download_url"),
        (|m| m.tarball_sha256 = None, "tarball_sha256"),
        (|m| m.tarball_sha256 = Some("sha256:abcd".into()), "tarball_sha256"),
        (|m| m.tarball_sha256 = Some("ab".repeat(32)), "tarball_sha256"),
        (|m| m.version = "0.0.9".into(), "older than 0.1.0"),
        (|m| m.version = "0.3.0".into(), "not tried again"),
    ];
    let standing = Standing {
        refused: vec![("0.3.0".parse().unwrap(), Some([0xcd; 32]))],
        floor: Some("0.1.0".parse().unwrap()),
        ..Standing::default()
    };
    let mut world = world_with(Settings { standing, ..Settings::default() });
    for (number, (change, words)) in cases.into_iter().enumerate() {
        let mut wanted = manifest("0.2.0");
        change(&mut wanted);
        prepare(&mut world, &format!("p{number}"), "u", wanted);
        let failed = last_failure(&world);
        assert_eq!((failed.reply_to, failed.code.as_str()), (format!("p{number}"), "prepare_failed"));
        assert!(failed.message.contains(words), "{words}: {}", failed.message);
        assert!(!failed.message.contains('\u{1b}'));
    }
    assert!(world.updates.is_empty());
    // And the same tarball by another name.
    let renamed =
        Manifest { tarball_sha256: Some(format!("sha256:{}", "cd".repeat(32))), ..manifest("0.3.1") };
    prepare(&mut world, "p", "u", renamed);
    assert!(last_failure(&world).message.contains("not tried again"));
    prepare(&mut world, "q", "u", manifest("0.3.1"));
    assert_eq!(downloads(&world), 1);
}

#[test]
fn a_node_that_nobody_can_install_for_says_so() {
    let way = Way::Nobody("this node does not run from an install directory".into());
    let mut world = world_with(Settings { way, ..Settings::default() });
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    assert!(last_failure(&world).message.contains("install directory"));
}

#[test]
fn with_a_pinned_key_what_is_unsigned_or_expired_is_refused() {
    let key = Identity::from_seed(Pure, &[8; 32]);
    let keys = ReleaseKeys::new(vec![*key.public_key()]).unwrap();
    let mut world = world_with(Settings { keys, ..Settings::default() });
    let signed = |expires: u64| {
        let mut manifest = manifest("0.2.0");
        manifest.set_tarball_size(1000);
        manifest.set_expires(expires);
        assert!(sign(&Pure, &key, &mut manifest));
        manifest
    };
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    assert!(last_failure(&world).message.contains("not signed"), "{}", last_failure(&world).message);
    prepare(&mut world, "q", "u", signed(UNIX));
    assert!(last_failure(&world).message.contains("expired"), "{}", last_failure(&world).message);
    prepare(&mut world, "r", "u", Manifest { commit: "forged".into(), ..signed(UNIX + 600) });
    assert!(last_failure(&world).message.contains("forged"), "{}", last_failure(&world).message);
    assert!(world.updates.is_empty());
    prepare(&mut world, "s", "u", signed(UNIX + 600));
    assert_eq!(last_ready(&world).reply_to, "s");
    // What was good when it was prepared is not good for ever.
    world.run_for(600 * SECOND);
    apply(&mut world, "a", "u", 0);
    assert_eq!(
        (last_failure(&world).reply_to.as_str(), last_failure(&world).code.as_str()),
        ("a", "apply_failed")
    );
    assert!(installs(&world).is_empty());
}

#[test]
fn a_release_older_than_the_running_one_is_refused_where_no_floor_allows_it() {
    let mut world = world();
    prepare(&mut world, "p", "u", manifest("0.0.9"));
    assert!(last_failure(&world).message.contains("older than 0.1.0"), "{}", last_failure(&world).message);
    let standing = Standing { floor: Some("0.0.9".parse().unwrap()), ..Standing::default() };
    let mut world = world_with(Settings { standing, ..Settings::default() });
    prepare(&mut world, "p", "u", manifest("0.0.9"));
    assert_eq!(downloads(&world), 1);
}

#[test]
fn a_download_that_fails_or_holds_another_release_is_refused() {
    let mut world = world();
    world.download = Some(Err("HTTP 404\u{7}".into()));
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    assert_eq!(last_failure(&world).message, "HTTP 404 ");
    world.download = Some(Ok(PATH.into()));
    world.archive = Err("bin/consensus-node is missing".into());
    prepare(&mut world, "q", "u", manifest("0.2.0"));
    assert!(last_failure(&world).message.contains("is missing"));
    world.archive = Ok(Box::new(Manifest::of_this_release("0.9.0", "def", "linux-x64")));
    prepare(&mut world, "r", "u", manifest("0.2.0"));
    assert!(last_failure(&world).message.contains("its version is 0.9.0, not 0.2.0"));
    apply(&mut world, "a", "u", 0);
    assert_eq!(last_failure(&world).code, "update_not_prepared");
    assert!(installs(&world).is_empty() && world.finish.is_none());
}

#[test]
fn an_operators_own_command_takes_any_artifact() {
    let mut world = world_with(Settings { way: Way::Command, ..Settings::default() });
    let foreign =
        Manifest { artifact: "npm-tarball".into(), platform: "any-any".into(), ..manifest("2026.47.0") };
    prepare(&mut world, "p", "u", foreign.clone());
    assert_eq!(last_ready(&world).target_version, "2026.47.0");
    assert!(!world.updates.iter().any(|(_, effect)| matches!(effect, Effect::Inspect { .. })));
    apply(&mut world, "a", "u", 0);
    world.run_for(SECOND);
    assert!(installs(&world)[0].by_command);
    assert_eq!(world.finish.as_ref().unwrap().outcome, Outcome::Updating);

    // The name of a file comes of it, so it is still no path.
    let mut world = world_with(Settings { way: Way::Command, ..Settings::default() });
    prepare(&mut world, "p", "u", Manifest { version: "../x".into(), ..foreign });
    assert!(last_failure(&world).message.contains("not a version"));
}

#[test]
fn a_second_prepare_takes_the_place_of_the_first() {
    let mut world = world();
    world.download = None;
    prepare(&mut world, "p", "u-1", manifest("0.1.9"));
    let first = world.updates[0].0;
    assert_eq!(status(&mut world)["state"], "preparing");
    world.download = Some(Ok(PATH.into()));
    prepare(&mut world, "q", "u-2", manifest("0.2.0"));
    assert_eq!(told(&world), ["prepare_failed p", "ready q"]);
    assert_eq!(world.cancelled, [first]);
    // The end of the first comes late and changes nothing.
    world.feed(Input::Done { effect: first, result: EffectResult::Downloaded(Ok("/other".into())) });
    assert_eq!(status(&mut world)["version"], "0.2.0");
    apply(&mut world, "a", "u-1", 0);
    assert_eq!(told(&world)[2], "update_not_prepared a");
    // And one that is refused takes its place as well: the server does not want the second any more.
    prepare(&mut world, "r", "u-3", Manifest { artifact: "npm-tarball".into(), ..manifest("0.2.0") });
    apply(&mut world, "b", "u-2", 0);
    assert_eq!(told(&world)[3..], ["prepare_failed r", "update_not_prepared b"]);
    assert!(installs(&world).is_empty());
}

#[test]
fn the_same_release_is_neither_downloaded_twice_nor_prepared_twice() {
    let mut world = world();
    world.download = None;
    prepare(&mut world, "p", "u-1", manifest("0.2.0"));
    prepare(&mut world, "q", "u-1", manifest("0.2.0"));
    assert_eq!(told(&world), ["prepare_failed p"]);
    assert!(world.cancelled.is_empty());
    let download = world.updates[0].0;
    world.feed(Input::Done { effect: download, result: EffectResult::Downloaded(Ok(PATH.into())) });
    world.run_for(SECOND);
    prepare(&mut world, "r", "u-2", manifest("0.2.0"));
    assert_eq!(told(&world)[1..], ["ready q", "ready r"]);
    assert_eq!((downloads(&world), last_ready(&world).update_id), (1, "u-2".into()));
}

#[test]
fn a_preparation_that_takes_too_long_is_given_up() {
    let mut world = world();
    world.download = None;
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 0);
    assert_eq!(told(&world), ["update_not_prepared a"], "not while it is being prepared");
    world.run_for(PREPARE_TIMEOUT - SECOND);
    assert_eq!(told(&world).len(), 1);
    world.run_for(SECOND);
    assert_eq!(told(&world)[1], "prepare_failed p");
    assert_eq!(world.cancelled, [world.updates[0].0]);
    assert!(world.is_connected());
}

#[test]
fn what_was_prepared_outlives_the_session_and_its_answer_does_not() {
    let mut world = world();
    world.download = None;
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    world.cut();
    world.run_for(SECOND / 2);
    assert!(!world.is_connected());
    let download = world.updates[0].0;
    world.feed(Input::Done { effect: download, result: EffectResult::Downloaded(Ok(PATH.into())) });
    world.run_for(10 * SECOND);
    assert!(world.is_connected());
    assert!(told(&world).is_empty(), "nobody waits for the answer any more");
    prepare(&mut world, "q", "u", manifest("0.2.0"));
    assert_eq!((told(&world), downloads(&world)), (vec!["ready q".to_string()], 1));

    world.cut();
    world.run_for(10 * SECOND);
    apply(&mut world, "a", "u", 0);
    world.run_for(SECOND);
    assert_eq!(told(&world)[1], "ack a");
    assert_eq!(world.finish.as_ref().unwrap().outcome, Outcome::Updating);
}

#[test]
fn while_it_drains_nothing_new_is_taken_on_and_what_runs_may_end() {
    let mut world = world();
    world.run_for(SECOND);
    send(&mut world, open("s", "proxy-session"));
    world.server(proxy("old", "http://203.0.114.10/"));
    world.run_for(SECOND);
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 0);
    assert!(installs(&world).is_empty(), "a request runs");
    world.reply = hello_reply;
    world.server(proxy("new", "http://203.0.114.11/"));
    send(&mut world, open("t", r#"{"kind":"raw-tunnel","host":"203.0.114.12","port":80}"#));
    world.run_for(SECOND);
    let refused = format!("{:?}", outcomes(&world)[0].as_ref().unwrap_err());
    assert!(refused.contains("restarts for an update"), "{refused}");
    let is_draining = |(_, event): &(Duration, orchestrator::Event)| {
        matches!(event, orchestrator::Event::Message(message)
            if matches!(&**message, Message::ErrorMessage(error) if error.code == "node_draining"))
    };
    assert!(world.server_events.iter().any(is_draining));
    assert_eq!(world.fetched.len(), 1);

    // The old request's answer comes, and then nothing is waited for.
    let old = world.cancelled.len();
    let effect = consensus_core::io::EffectId(1);
    let response = hello_reply(&world.fetched[0]).unwrap();
    world.feed(Input::Done { effect, result: EffectResult::Fetched(Ok(response)) });
    world.run_for(SECOND);
    assert_eq!(outcomes(&world).len(), 2);
    assert!(outcomes(&world)[1].is_ok());
    assert_eq!((installs(&world).len(), world.cancelled.len()), (1, old));
    assert_eq!(world.finish.as_ref().unwrap().outcome, Outcome::Updating);
}

#[test]
fn a_drain_ends_whatever_runs_and_whatever_the_server_asks_for() {
    let mut world = world();
    send(&mut world, open("t", r#"{"kind":"raw-tunnel","host":"203.0.114.12","port":80}"#));
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", u64::MAX);
    world.run_for(MAX_RESTART_AFTER + DRAIN_LIMIT - SECOND);
    assert!(installs(&world).is_empty() && world.is_connected());
    world.run_for(2 * SECOND);
    assert_eq!(installs(&world).len(), 1);
    assert!(world.finish.is_some());
}

#[test]
fn an_installer_that_fails_leaves_the_node_serving() {
    let mut world = world();
    world.install = Some(Err("no space left".into()));
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 0);
    world.run_for(SECOND);
    let failed = last_failure(&world);
    assert_eq!((failed.reply_to.as_str(), failed.code.as_str()), ("a", "apply_failed"));
    assert!(failed.message.contains("no space left"));
    world.reply = hello_reply;
    world.server(proxy("r", "http://203.0.114.10/"));
    world.run_for(SECOND);
    assert!(outcomes(&world)[0].is_ok(), "it takes requests again");
    assert!(world.finish.is_none() && world.closes.is_empty());
    // What failed is not at hand any more: it is looked at anew.
    apply(&mut world, "b", "u", 0);
    assert_eq!(last_failure(&world).code, "update_not_prepared");
    world.install = Some(Ok(()));
    prepare(&mut world, "q", "u", manifest("0.2.0"));
    apply(&mut world, "c", "u", 0);
    world.run_for(SECOND);
    assert_eq!(world.finish.as_ref().unwrap().outcome, Outcome::Updating);
}

#[test]
fn an_installer_that_fails_without_a_session_is_told_to_the_next_one() {
    let mut world = world();
    world.install = None;
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 0);
    world.weather = Weather::Refusing;
    world.cut();
    world.run_for(SECOND);
    let (install, _) = world.updates.last().cloned().unwrap();
    let failed = EffectResult::Installed(Err("no space left".into()));
    world.feed(Input::Done { effect: install, result: failed });
    world.weather = Weather::Clear;
    world.run_for(60 * SECOND);
    assert_eq!(told(&world), ["ready p", "ack a", "apply_failed u"]);
    world.cut();
    world.run_for(60 * SECOND);
    assert_eq!(told(&world).len(), 3, "told once");
}

#[test]
fn an_update_under_way_is_applied_without_a_session_as_well() {
    let mut world = world();
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 5000);
    world.weather = Weather::Refusing;
    world.cut();
    world.run_for(10 * SECOND);
    assert_eq!(world.finish.as_ref().unwrap().outcome, Outcome::Updating);
}

#[test]
fn a_server_that_comes_back_and_asks_once_more_is_told_that_it_happens() {
    let mut world = world();
    world.install = None;
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 0);
    world.cut();
    world.run_for(10 * SECOND);
    apply(&mut world, "b", "u", 0);
    apply(&mut world, "c", "other", 0);
    prepare(&mut world, "q", "u-2", manifest("0.2.1"));
    assert_eq!(told(&world)[2..], ["ack b", "update_not_prepared c", "prepare_failed q"]);
    let (install, _) = world.updates.last().cloned().unwrap();
    world.feed(Input::Done { effect: install, result: EffectResult::Installed(Err("x".into())) });
    world.run_for(SECOND);
    assert_eq!(told(&world).last().unwrap(), "apply_failed b");
}

#[test]
fn an_installer_that_hangs_does_not_keep_the_node_from_serving() {
    let mut world = world();
    world.install = None;
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 0);
    world.run_for(INSTALL_TIMEOUT + SECOND);
    assert_eq!(told(&world), ["ready p", "ack a", "apply_failed a"]);
    let (install, _) = world.updates.last().cloned().unwrap();
    assert_eq!(world.cancelled, [install]);
    world.reply = hello_reply;
    world.server(proxy("r", "http://203.0.114.10/"));
    world.run_for(SECOND);
    assert!(outcomes(&world)[0].is_ok());
    // Two installers at once would be one too many.
    prepare(&mut world, "q", "u", manifest("0.2.0"));
    assert!(last_failure(&world).message.contains("still runs"));
    world.feed(Input::Done { effect: install, result: EffectResult::Installed(Ok(())) });
    assert_eq!(world.count(|event| matches!(event, Event::UpdateOverdue { .. })), 1);
    prepare(&mut world, "r", "u", manifest("0.2.0"));
    assert_eq!(told(&world).last().unwrap(), "ready r");
    assert!(world.finish.is_none());
}

#[test]
fn an_operators_stop_goes_before_an_update() {
    let mut world = world();
    world.install = None;
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    apply(&mut world, "a", "u", 0);
    world.feed(Input::Stop);
    assert_eq!(world.closes, [(1000, "control stopped".to_string())]);
    world.run_for(10 * SECOND);
    assert_eq!(world.finish.as_ref().unwrap().outcome, Outcome::Done);
}

#[test]
fn a_release_on_probation_is_confirmed_by_the_first_pong() {
    let standing = Standing { on_probation: true, ..Standing::default() };
    let updates = Settings { standing, ..Settings::default() };
    let mut world = World::new(Config { updates, ..config(Some(Mode::Control)) }, 1);
    world.weather = Weather::Refusing;
    world.run_for(10 * SECOND);
    assert!(world.updates.is_empty());
    assert_eq!(status(&mut world)["on_probation"], true);
    world.weather = Weather::Clear;
    world.install = Some(Err("read-only file system".into()));
    world.run_for(30 * SECOND);
    let tries = world.updates.len();
    assert!(tries >= 1, "{tries}");
    assert_eq!(status(&mut world)["on_probation"], true, "what could not be written down is tried again");
    world.install = Some(Ok(()));
    world.run_for(60 * SECOND);
    assert_eq!(status(&mut world)["on_probation"], false);
    assert_eq!(world.count(|event| matches!(event, Event::UpdateConfirmed { .. })), 1);
    let confirmed = world.updates.len();
    world.run_for(600 * SECOND);
    assert_eq!(world.updates.len(), confirmed, "once");
}

#[test]
fn a_server_that_is_silent_after_ready_confirms_nothing() {
    let standing = Standing { on_probation: true, ..Standing::default() };
    let updates = Settings { standing, ..Settings::default() };
    let mut world = World::new(Config { updates, ..config(Some(Mode::Control)) }, 1);
    while !world.is_connected() {
        world.run_for(Duration::from_millis(1));
    }
    world.weather = Weather::BlackHole;
    world.run_for(50 * SECOND);
    assert!(world.updates.is_empty());
}

#[test]
fn a_rollback_is_told_to_the_server_once() {
    let rolled_back = RolledBack {
        update_id: Some("u-1".into()),
        version: "0.2.0".into(),
        reason: "no ready within 120 s".into(),
        was_silent: true,
    };
    let standing = Standing { rolled_back: Some(rolled_back), ..Standing::default() };
    let mut world = world_with(Settings { standing, ..Settings::default() });
    let failed = last_failure(&world);
    assert_eq!((failed.update_id.as_str(), failed.code.as_str()), ("u-1", "apply_failed"));
    assert!(failed.message.contains("0.2.0") && failed.message.contains("no ready"), "{}", failed.message);
    assert!(matches!(world.updates[..], [(_, Effect::AcknowledgeRollback { is_excused: false })]));
    world.cut();
    world.run_for(60 * SECOND);
    assert_eq!((told(&world).len(), world.updates.len()), (1, 1));
    assert_eq!(world.count(|event| matches!(event, Event::UpdateRolledBack { .. })), 1);
}

#[test]
fn a_release_that_was_silent_while_the_network_was_away_is_not_held_to_have_failed() {
    for (was_silent, was_away) in [(true, true), (true, false), (false, true)] {
        let rolled_back = RolledBack {
            update_id: Some("u-1".into()),
            version: "0.2.0".into(),
            reason: "it did not reconnect within 120 s".into(),
            was_silent,
        };
        let standing = Standing {
            rolled_back: Some(rolled_back),
            refused: vec![("0.2.0".parse().unwrap(), Some([0xab; 32]))],
            ..Standing::default()
        };
        let updates = Settings { standing, ..Settings::default() };
        let mut world = World::new(Config { updates, ..config(Some(Mode::Control)) }, 1);
        world.archive = Ok(Box::new(Manifest::of_this_release("0.2.0", "def", "linux-x64")));
        if was_away {
            world.weather = Weather::Refusing;
            world.run_for(10 * SECOND);
            world.weather = Weather::Clear;
        }
        world.run_for(40 * SECOND);
        let is_to_be_excused = was_silent && was_away;
        let [(_, Effect::AcknowledgeRollback { is_excused })] = world.updates[..] else { panic!() };
        assert_eq!(is_excused, is_to_be_excused, "silent {was_silent}, away {was_away}");
        assert_eq!(last_failure(&world).message.contains("may be tried again"), is_to_be_excused);
        prepare(&mut world, "p", "u-2", manifest("0.2.0"));
        assert_eq!(downloads(&world), usize::from(is_to_be_excused));
    }
}

#[test]
fn a_release_that_proved_itself_prepares_nothing_that_the_installer_would_refuse() {
    let standing =
        Standing { on_probation: true, floor: Some("0.0.1".parse().unwrap()), ..Standing::default() };
    let mut world = world_with(Settings { standing, ..Settings::default() });
    world.run_for(60 * SECOND);
    assert_eq!(world.count(|event| matches!(event, Event::UpdateConfirmed { .. })), 1);
    prepare(&mut world, "p", "u", manifest("0.0.9"));
    assert!(last_failure(&world).message.contains("older than 0.1.0"), "{}", last_failure(&world).message);
    assert_eq!(downloads(&world), 0);
}

#[test]
fn another_build_of_a_version_that_failed_is_another_release() {
    let standing = Standing { refused: vec![("0.2.0".parse().unwrap(), None)], ..Standing::default() };
    let mut world = world_with(Settings { standing, ..Settings::default() });
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    assert!(last_failure(&world).message.contains("not tried again"));
    prepare(&mut world, "p", "u", manifest("0.2.0+2"));
    assert_eq!(downloads(&world), 1);
}

#[test]
fn a_rollback_of_the_operators_own_update_is_told_to_the_operator_alone() {
    let rolled_back =
        RolledBack { update_id: None, version: "0.2.0".into(), reason: "x".into(), was_silent: false };
    let standing = Standing { rolled_back: Some(rolled_back), ..Standing::default() };
    let world = world_with(Settings { standing, ..Settings::default() });
    assert!(told(&world).is_empty());
    assert_eq!(world.count(|event| matches!(event, Event::UpdateRolledBack { .. })), 1);
    assert!(matches!(world.updates[..], [(_, Effect::AcknowledgeRollback { is_excused: false })]));
}

#[test]
fn a_node_that_is_evaluated_takes_no_updates() {
    let mut world = World::new(config(Some(Mode::Eval)), 1);
    world.run_for(Duration::from_millis(150));
    prepare(&mut world, "p", "u", manifest("0.2.0"));
    assert!(world.updates.is_empty() && told(&world).is_empty());
    let mut world = control();
    apply(&mut world, "a", "u", 0);
    assert!(world.updates.is_empty());
}
