use std::string::ToString as _;
use std::vec;

use super::*;
use crate::bench::report::{BenchResult, NsPerOp, Report};
use crate::data_plane::replay::Before;
use crate::io::{EffectId, EffectResult, LinkEnd, LinkId, LocalId, LocalRequest};
use crate::limits::Limits;
use crate::release::manifest::Manifest;
use crate::state::Registration;

const SEED: [u8; 32] = *b"the seed of a node in these test";
const IDENTITY: [u8; 32] = *b"the identity of a node in a test";
const TOKEN: &str = "a-token-that-is-nobodys-business";

fn config() -> Config {
    let mut registration = Registration::new("node-1");
    registration.extra.insert("secret".to_string(), TOKEN.into());
    let mut manifest = Manifest::of_this_release("0.1.0", "unknown", "linux-x64");
    manifest.extra.insert("more".to_string(), serde_json::json!({ "n": 1.5 }));
    let version = |text: &str| text.parse().unwrap();
    let standing = crate::update::Standing {
        refused: vec![(version("9.9.9"), Some([1; 32]))],
        floor: Some(version("0.0.1")),
        ..Default::default()
    };
    Config {
        mode: Some(Mode::Control),
        tunnel_url: "ws://network.example/node/tunnel".to_string(),
        server_key: Some([2; 32]),
        identity_seed: IDENTITY.into(),
        candidate_id: Some(TOKEN.to_string()),
        registration: Some(registration),
        manifest,
        limits: Limits::default(),
        allow_private_targets: true,
        spent_before: Before::from_file(br#"{"clean":true,"first":0,"tickets":[]}"#),
        updates: crate::update::Settings { standing, ..Default::default() },
    }
}

const fn at(millis: u64) -> Now {
    Now { monotonic: Duration::from_millis(millis), unix: Duration::from_millis(1_795_391_521_000 + millis) }
}

fn settings(secrets: bool) -> Settings {
    let (program, program_version) = ("test".to_string(), "1".to_string());
    Settings { program, program_version, secrets, limit: MIN_LIMIT }
}

/// Tells a node all kinds of things; gives its trace.
fn recorded(secrets: bool) -> Vec<u8> {
    let mut recorder = Recorder::new(settings(secrets), config(), SEED, at(0));
    let mut trace = Vec::new();
    let request = LocalRequest {
        method: "GET".to_string(),
        target: ["/health?token=", TOKEN].concat(),
        headers: vec![
            ("host".to_string(), "localhost".to_string()),
            ("authorization".to_string(), TOKEN.to_string()),
        ],
        body: TOKEN.as_bytes().to_vec(),
    };
    let bench = BenchResult {
        name: "x".to_string(),
        reliable: true,
        samples: 1,
        total_ops: 1,
        duration_ms: 1,
        ops_per_second: 0.1 + 0.2,
        ns_per_op: NsPerOp { min: 1.0, median: 1e-300, mean: 1.0, p95: 1.0, p99: 1.0, stddev: 0.0 },
        cv: 0.0,
    };
    let measured = EffectResult::Measured(Ok(Report::EventLoop(bench)));
    let (first, second) = (LinkId(0), LinkId(1));
    let closed = LinkEnd::Closed { code: 4000, reason: "bye".to_string() };
    for (millis, input) in [
        (0, Input::Tick),
        (5, Input::Done { effect: EffectId(0), result: EffectResult::Written(Ok(())) }),
        (9, Input::LinkOpened { link: first }),
        (9, Input::LinkText { link: first, text: TOKEN.to_string() }),
        (20, Input::LinkEnded { link: first, end: closed }),
        (21, Input::Local { id: LocalId(0), request }),
        (22, Input::Done { effect: EffectId(77), result: measured }),
        (3000, Input::Tick),
        (3001, Input::LinkOpened { link: second }),
        (3002, Input::LinkBinary { link: second, data: TOKEN.as_bytes().to_vec() }),
        (4000, Input::Stop),
        (9000, Input::Tick),
    ] {
        recorder.handle_input(at(millis), input);
        while !matches!(recorder.poll_output(), Output::Wait(_)) {}
        trace.extend(recorder.take_bytes());
        if recorder.end().is_some() {
            break;
        }
    }
    assert_eq!(recorder.end(), Some(End::Finished));
    trace
}

/// Runs a trace to its end: how many steps, and the last of them.
fn replayed(trace: &[u8]) -> Result<(u64, Step), TraceError> {
    let mut replay = Replay::new(Reader::new(trace)?, Pure)?;
    let mut last = None;
    while let Some(step) = replay.step()? {
        last = Some(step);
    }
    Ok(last.unwrap())
}

fn records(trace: &[u8]) -> Result<Vec<Record>, TraceError> {
    let mut reader = Reader::new(trace)?;
    let mut all = Vec::new();
    while let Some((number, record)) = reader.next_record()? {
        all.push(record);
        assert_eq!(number, all.len() as u64);
    }
    Ok(all)
}

/// The trace with a record in another's place.
fn with_record(trace: &[u8], number: usize, record: &Record) -> Vec<u8> {
    let mut at = MAGIC.len() + 2;
    for _ in 0..number {
        at += PREFIX + u32::from_le_bytes(trace[at..at + 4].try_into().unwrap()) as usize;
    }
    let after = at + PREFIX + u32::from_le_bytes(trace[at..at + 4].try_into().unwrap()) as usize;
    [&trace[..at], &encode(record).unwrap(), &trace[after..]].concat()
}

#[test]
fn a_trace_with_secrets_runs_again_to_the_same_end() {
    let trace = recorded(true);
    let (number, last) = replayed(&trace).unwrap();
    assert_eq!(last, Step::End(End::Finished));
    let all = records(&trace).unwrap();
    assert_eq!(number, all.len() as u64);
    assert!(all.iter().filter(|record| matches!(record, Record::Output(Output::Send { .. }))).count() >= 2);
    assert!(all.iter().any(|record| matches!(record, Record::Output(Output::Respond { .. }))));
}

#[test]
fn the_first_other_output_is_told_with_what_was_expected() {
    let trace = recorded(true);
    let all = records(&trace).unwrap();
    let is_send = |record: &Record| matches!(record, Record::Output(Output::Send { .. }));
    let number = all.iter().position(is_send).unwrap();
    let Record::Output(Output::Send { link, mut data }) = all[number].clone() else { unreachable!() };
    data[10] ^= 1;
    let expected = Output::Send { link, data };
    let changed = with_record(&trace, number + 1, &Record::Output(expected.clone()));
    let (at_record, Step::Difference(difference)) = replayed(&changed).unwrap() else {
        panic!("no difference")
    };
    assert_eq!((at_record, difference.record), (number as u64 + 1, number as u64 + 1));
    assert_eq!((difference.expected, difference.at), (expected, at(9)));
    assert_eq!(Record::Output(difference.got), all[number]);
}

#[test]
fn a_trace_without_secrets_has_none_and_is_shown_but_not_replayed() {
    let trace = recorded(false);
    let has = |needle: &[u8]| trace.windows(needle.len()).any(|part| part == needle);
    for secret in [&SEED[..], &IDENTITY, TOKEN.as_bytes()] {
        assert!(!has(secret), "{}", String::from_utf8_lossy(secret));
    }
    assert!(has(b"node-1") && has(b"local request 0: GET, 32 bytes"));
    // The same with secrets has them: this test can fail.
    let whole = recorded(true);
    assert!(whole.windows(32).any(|part| part == SEED) && whole.windows(32).any(|part| part == IDENTITY));
    assert_eq!(replayed(&trace), Err(TraceError::NoSecrets));
    assert!(
        records(&trace)
            .unwrap()
            .iter()
            .all(|record| !matches!(record, Record::Input { .. } | Record::Output(_)))
    );
    assert_eq!(records(&trace).unwrap().len(), records(&whole).unwrap().len());
}

#[test]
fn a_trace_without_secrets_does_not_say_whose_pages_were_fetched() {
    use crate::event::Event;
    let origin = "https://private.example:8443".to_string();
    let reason = "private.example: no such name".to_string();
    for event in [
        Event::Proxied { origin: origin.clone(), status: 200, bytes: 7, duration_ms: 8 },
        Event::ProxyFailed { origin: Some(origin), reason },
    ] {
        assert!(event.to_string().contains("private.example"), "the log does");
        let line = about::output(&Output::Event(event));
        assert!(line.starts_with("say: prox") && !line.contains("private"), "{line}");
    }
}

#[test]
fn a_trace_that_is_cut_anywhere_says_so() {
    for secrets in [true, false] {
        let trace = recorded(secrets);
        for length in 0..trace.len() {
            let error = records(&trace[..length]).unwrap_err();
            let expected = if length < MAGIC.len() {
                error == TraceError::NotATrace
            } else {
                matches!(error, TraceError::Cut(_))
            };
            assert!(expected, "{length}: {error:?}");
            if secrets {
                assert!(replayed(&trace[..length]).is_err());
            }
        }
    }
}

#[test]
fn a_bit_that_flips_anywhere_is_noticed() {
    let trace = recorded(true);
    for at in 0..trace.len() * 8 {
        let mut damaged = trace.clone();
        damaged[at / 8] ^= 1 << (at % 8);
        assert!(records(&damaged).is_err(), "bit {at}");
    }
}

#[test]
fn what_has_its_checksum_and_is_no_run_is_refused() {
    let trace = recorded(true);
    let first = |record: &Record| replayed(&with_record(&trace, 1, record));
    for (record, expected) in [
        // Time that no process has.
        (
            Record::Input { now: Now { monotonic: Duration::MAX, ..at(0) }, input: Input::Tick },
            TraceError::Malformed(1),
        ),
        (
            Record::Input { now: Now { unix: Duration::MAX, ..at(0) }, input: Input::Tick },
            TraceError::Malformed(1),
        ),
        (Record::Told { now: at(0), what: "tick".to_string() }, TraceError::Malformed(1)),
        (Record::End(End::Finished), TraceError::AfterEnd(1)),
    ] {
        assert_eq!(first(&record), Err(expected), "{record:?}");
    }
    let late = with_record(&trace, 1, &Record::Input { now: at(6), input: Input::Tick });
    assert!(matches!(records(&late), Err(TraceError::Malformed(2..))), "{:?}", records(&late));
    // An input where outputs were left.
    assert_eq!(
        replayed(&with_record(&trace, 2, &Record::Input { now: at(0), input: Input::Tick })),
        Err(TraceError::Malformed(2))
    );
    // A configuration with which a node would never come to rest.
    let mut reader = Reader::new(&trace).unwrap();
    let mut config = config();
    config.limits.ping_interval = Duration::ZERO;
    reader.header.secrets = Some(Secrets { seed: SEED, config: Stored::of(&config) });
    assert_eq!(Replay::new(reader, Pure).err(), Some(TraceError::Config(BadConfig::Limits)));
    // A length that nobody would give memory for.
    let mut long = trace[..10].to_vec();
    long.extend([0xff; 8]);
    assert_eq!(records(&long), Err(TraceError::TooLarge(0)));
    let mut other = trace;
    other[8] = 9;
    assert_eq!(records(&other), Err(TraceError::OtherVersion(9)));
}

#[test]
fn a_trace_ends_at_its_bound_and_the_node_goes_on() {
    let mut recorder = Recorder::new(settings(true), config(), SEED, at(0));
    let mut trace = Vec::new();
    for round in 0..100 {
        let data = vec![7; 100_000];
        recorder.handle_input(at(round), Input::LocalMessage { id: LocalId(5), data });
        while !matches!(recorder.poll_output(), Output::Wait(_)) {}
        trace.extend(recorder.take_bytes());
    }
    assert_eq!(recorder.end(), Some(End::Limit));
    assert!(trace.len() as u64 <= MIN_LIMIT && trace.len() as u64 > MIN_LIMIT - 110_000, "{}", trace.len());
    assert_eq!(replayed(&trace).unwrap().1, Step::End(End::Limit));
    recorder.handle_input(at(100), Input::Stop);
    assert!(!matches!(recorder.poll_output(), Output::Wait(_)), "the node still acts");
}

#[test]
fn a_figure_that_is_no_number_ends_the_trace() {
    let mut recorder = Recorder::new(settings(true), config(), SEED, at(0));
    let ns = NsPerOp { min: f64::NAN, median: 1.0, mean: 1.0, p95: 1.0, p99: 1.0, stddev: 0.0 };
    let bench = BenchResult {
        name: "x".to_string(),
        reliable: true,
        samples: 1,
        total_ops: 1,
        duration_ms: 1,
        ops_per_second: 1.0,
        ns_per_op: ns,
        cv: 0.0,
    };
    let result = EffectResult::Measured(Ok(Report::EventLoop(bench)));
    recorder.handle_input(at(0), Input::Done { effect: EffectId(1), result });
    assert_eq!(recorder.end(), Some(End::Inexact));
    assert_eq!(replayed(&recorder.take_bytes()).unwrap().1, Step::End(End::Inexact));
}
