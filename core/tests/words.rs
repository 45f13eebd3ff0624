//! What errors say, and what is said of things that hold secrets.

use core::time::Duration;
use std::collections::BTreeSet;
use std::fmt::{Debug, Display};

use consensus_core::crypto::identity::Identity;
use consensus_core::crypto::pem::PemError;
use consensus_core::crypto::pure::Pure;
use consensus_core::crypto::{BadPoint, Drbg};
use consensus_core::data_plane::responder::AcceptError;
use consensus_core::data_plane::ticket::TicketError;
use consensus_core::guard::Refused;
use consensus_core::peer::client::{ConnectError, Connecting, ProofError};
use consensus_core::peer::handshake::Reject;
use consensus_core::release::gunzip::{Gunzip, GzipError};
use consensus_core::time::{Now, Reason};
use consensus_core::trace::{End, TraceError};
use consensus_core::tunnel::session::{Keys, OpenError, Role, Session};
use consensus_core::wire::frame::FrameError;
use consensus_core::wire::mux::MuxError;

/// Each of a kind says something of its own, on one line, that can stand in a sentence.
fn differ<T: Display>(all: &[T]) {
    let words: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(words.len(), all.len(), "{words:?}");
    for said in &words {
        assert!(!said.is_empty() && !said.chars().any(char::is_control), "{said:?}");
        assert!(!said.ends_with('.') && said.len() < 200, "{said:?}");
    }
}

#[test]
fn every_error_says_what_happened_in_words_of_its_own() {
    let frames = [
        FrameError::TooShort { len: 1 },
        FrameError::TooLong { len: 2 },
        FrameError::Version(2),
        FrameError::Type(9),
        FrameError::Length { announced: 7, present: 8 },
    ];
    differ(&frames);
    differ(&[OpenError::Frame(frames[0]), OpenError::Replay { sequence: 1, last: 2 }, OpenError::Tag]);
    differ(&[MuxError::TooShort, MuxError::Kind(9)]);
    differ(&[PemError::Armor, PemError::Base64, PemError::NotEd25519]);
    differ(&[BadPoint]);
    differ(&[AcceptError::Malformed, AcceptError::OtherNode, AcceptError::BadPoint]);
    differ(&[
        TicketError::Malformed,
        TicketError::BadSignature,
        TicketError::Issuer,
        TicketError::Audience,
        TicketError::Scope,
        TicketError::Expired,
        TicketError::Future,
        TicketError::Empty,
    ]);
    differ(&[
        Refused::UrlTooLong,
        Refused::Url,
        Refused::Scheme,
        Refused::Port,
        Refused::NotPublic,
        Refused::NoAddress,
        Refused::Method,
        Refused::Header,
        Refused::HeadersTooLarge,
    ]);
    differ(&[
        GzipError::NotGzip,
        GzipError::Damaged,
        GzipError::Checksum,
        GzipError::Length,
        GzipError::Truncated,
        GzipError::Trailing,
        GzipError::Bomb,
        GzipError::TooLarge(7),
    ]);
    differ(&[End::Finished, End::Limit, End::Inexact]);
    differ(&[
        TraceError::NotATrace,
        TraceError::OtherVersion(9),
        TraceError::Cut(1),
        TraceError::TooLarge(1),
        TraceError::Damaged(1),
        TraceError::Malformed(1),
        TraceError::AfterEnd(1),
        TraceError::NoSecrets,
    ]);
    differ(&[
        Reason::Reconnect,
        Reason::Open,
        Reason::Handshake,
        Reason::Ready,
        Reason::Ping,
        Reason::Silence,
        Reason::Heartbeat,
        Reason::EvalAction,
        Reason::EvalIdle,
        Reason::ProxyRequest,
        Reason::DataPlaneStep,
        Reason::LocalRequest,
        Reason::UpdatePrepare,
        Reason::UpdatePause,
        Reason::UpdateDrain,
        Reason::UpdateInstall,
        Reason::Stop,
    ]);
}

#[test]
fn what_the_other_half_refuses_has_a_code_and_words_of_its_own() {
    let proofs = [
        ProofError::Malformed,
        ProofError::NodeId,
        ProofError::ClientNonce,
        ProofError::ChannelBinding,
        ProofError::Expired,
        ProofError::Future,
        ProofError::Signature,
    ];
    differ(&proofs);
    assert_eq!(proofs.iter().map(|error| error.kind()).collect::<BTreeSet<_>>().len(), proofs.len());
    differ(&[ConnectError::Malformed, ConnectError::Proof(ProofError::Expired)]);
    let rejects = [
        Reject::Malformed("x".into()),
        Reject::Incompatible,
        Reject::StaleClock { off_by: 7 },
        Reject::BadSignature,
        Reject::UnknownNode,
        Reject::WrongKey,
        Reject::BadPoint,
        Reject::Policy { code: "closed".into() },
    ];
    differ(&rejects);
    assert_eq!(rejects.iter().map(Reject::code).collect::<BTreeSet<_>>().len(), rejects.len());
}

#[test]
fn what_holds_a_secret_does_not_show_it_to_a_debugger_of_text() {
    fn shown(what: &impl Debug) -> String {
        format!("{what:?} {what:#?}")
    }
    // Each byte as decimal and as hexadecimal, as arrays and texts have it.
    let secret = |byte: u8| {
        [format!("{byte}, {byte}"), format!("{byte:02x}{byte:02x}"), format!("{byte:02X}{byte:02X}")]
    };
    let now = Now { monotonic: Duration::ZERO, unix: Duration::from_secs(1) };
    let keys = || Keys::derive(&Pure, &[201; 32], &[202; 32], &[203; 32], &[204; 32]);
    let session = Session::new(Pure, keys(), Role::Client, Drbg::new([205; 32]));
    let (connecting, _) = Connecting::start(Pure, "node-1", &mut Drbg::new([206; 32]), now);
    let all = [
        shown(&Identity::from_seed(Pure, &[207; 32])),
        shown(&keys()),
        shown(&session),
        shown(&Drbg::new([205; 32])),
        shown(&connecting),
        shown(&Gunzip::new(9)),
    ];
    for text in &all {
        for byte in 201..=207 {
            for form in secret(byte) {
                assert!(!text.contains(&form), "{text}");
            }
        }
    }
    let derived = &*keys().client_to_server;
    let (hex, list) = (consensus_core::wire::hex::encode(derived), format!("{derived:?}"));
    assert!(!all.iter().any(|text| text.contains(&hex) || text.contains(&list)));
}

#[test]
fn an_identity_that_is_generated_is_read_again_from_its_text() {
    let (identity, text) = Identity::generate(Pure, &mut Drbg::new([1; 32]));
    let again = Identity::from_private_pem(Pure, &text).map(|identity| *identity.public_key());
    assert_eq!(again, Ok(*identity.public_key()));
}
