//! How often memory is asked for on the way of one data-plane request, from `data_init` to the sealed answer.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics and says where")]

use std::collections::BTreeMap;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::{Crypto as _, Drbg};
use consensus_core::data_plane::replay::{Before, Spent};
use consensus_core::data_plane::responder::{self, Gate};
use consensus_core::data_plane::ticket;
use consensus_core::io::Response;
use consensus_core::peer::client::{Connecting, Request};
use consensus_core::time::Now;
use consensus_core::wire::frame::FrameType;
use shell_blocking::runtime_api::Provider;

const NOW: Now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1_795_391_521) };

/// What may be asked for, for one request.
const MOST: u64 = 12;

/// Requests served one after the other.
const REQUESTS: u64 = 2000;

/// What `work` gives, and what it asks of memory.
fn counted<T>(work: impl FnOnce() -> T) -> (T, AllocationInfo) {
    let mut made = None;
    let info = measure(|| made = Some(work()));
    (made.unwrap(), info)
}

#[test]
fn a_request_takes_few_allocations_and_none_that_grows_with_those_before_it() {
    let crypto = Provider::default();
    let mut rng = Drbg::new([1; 32]);
    let identity = Identity::from_seed(crypto, &[2; 32]);
    let issuer = crypto.signing_key(&[3; 32]);
    let issuer_key = crypto.public_key(&issuer);
    let gate = Gate { issuer_key: Some(&issuer_key), node_id: "node-1" };
    let mut spent = Spent::new(NOW, Before::Never);
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let response = Response {
        status: 200,
        reason: "OK".to_owned(),
        headers: vec![header("content-type", "text/plain"), header("content-length", "16384")],
        body: vec![7; 16 * 1024],
    };
    let request = Request {
        target_url: "https://a.example/b/c".to_owned(),
        method: Some("GET".to_owned()),
        headers: BTreeMap::from([header("accept", "*/*")]),
        ..Request::default()
    };
    let mut stages = Vec::new();
    for number in 0..REQUESTS {
        let (connecting, init) = Connecting::start(crypto, "node-1", &mut rng, NOW);
        let (accepted, handshake) =
            counted(|| responder::accept(crypto, &identity, "node-1", &init, &mut rng, NOW));
        let (responder, accept) = accepted.unwrap();
        let mut session = connecting.finish(&accept, identity.public_key(), rng.fork(), NOW).unwrap();
        let claims = ticket::Claims {
            iss: ticket::ISSUER.into(),
            aud: "node-1".into(),
            sub: request.dedupe_key(&crypto).unwrap().into(),
            scope: ticket::SCOPE.into(),
            iat: NOW.unix_seconds(),
            exp: NOW.unix_seconds() + 60,
            jti: format!("{number:032x}").into(),
        };
        let token = ticket::issue(&crypto, &issuer, "k", &claims);
        let mut frame = session.seal(FrameType::Data, request.encode(&token));
        let (opened, open) = counted(|| responder.open(&mut frame, 1024).unwrap());
        let (paid, verify) = counted(|| opened.verify(gate, NOW).unwrap());
        // The replay window itself is bounded, and asks for room for many tickets together.
        let (bought, spend) = counted(|| spent.spend(&paid.ticket, NOW));
        bought.unwrap();
        let (answer, encode) = counted(|| paid.encode(&response));
        let (frame, seal) = counted(|| answer.seal());
        drop(frame);
        let stage = [handshake, open, verify, encode, seal].map(|stage| stage.count_total);
        let all = stage.iter().sum::<u64>() + spend.count_total;
        assert!(
            all <= MOST,
            "request {number}: {all} allocations, {stage:?} and {} to spend",
            spend.count_total
        );
        stages.push(stage);
    }
    assert!(stages.iter().all(|stage| *stage == stages[0]), "the first request asks for {:?}", stages[0]);
}
