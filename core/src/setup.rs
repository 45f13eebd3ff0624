//! Setup: from nothing to a node that is kept running, as questions, answers and effects (protocol.md sections 7, 8 and 12).
//!
//! [`Setup`] is one machine that every front end drives: a terminal, a page. It decides what is asked and done, in
//! which order, and judges every answer at once; a front end shows, reads and carries out. Its loop:
//!
//! 1. [`next`](Setup::next) gives a [`Step`]. It gives the same one until that is dealt with.
//! 2. [`Step::Tell`] is shown. [`Step::Ask`] is answered by [`answer`](Setup::answer); an answer that cannot be taken
//!    comes back with the reason and an example, and the question stands. [`Step::Do`] is carried out and its end
//!    handed to [`result`](Setup::result).
//! 3. [`Step::Done`] is the end.
//!
//! What comes next follows from what is known and not from where the machine stands, so that it goes on from any point:
//! what is known is in `setup-progress.json` (the state directory), which is written before every question. What
//! has run out is not offered again. The email is verified after the evaluation: a machine that is not admitted
//! costs no email.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::io::{Fetch, FetchError, Finish, Response};
use crate::state::{JoinAuth, MachineRecord, Registration};

mod address;
mod answers;
pub mod gate;
mod machine;
mod progress;
mod texts;
pub mod view;

pub use self::address::{ADDRESS_SERVICES, Family, MAX_SERVICES};
pub use self::answers::{Answers, MAX_ANSWER};
pub use self::machine::Setup;
pub use self::progress::{MAX_PROGRESS, damage};

/// What an operator agrees to: one page of plain words, in lines of at most 80 columns.
pub const AGREEMENT: &str = include_str!("setup/agreement.txt");

/// Which agreement that is. One who agreed to another is asked again.
pub const AGREEMENT_VERSION: u64 = 1;

/// What is known before the first question.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Answers that the operator gave beforehand; they are not asked for, and go before what an earlier setup left.
    pub given: Answers,
    /// An email address verified earlier: the token for it.
    pub email_token: Option<String>,
    /// A verification that was begun elsewhere.
    pub verification_id: Option<String>,
    /// The code that came by email.
    pub code: Option<String>,
    /// Whether this program stays, whatever release the network requires: for builds from source.
    pub skip_release: bool,
    /// Who is asked for this machine's public addresses: URLs that answer with one as plain text.
    pub address_services: Vec<String>,
    /// Whether addresses that are not public are taken: for a lab.
    pub allow_private: bool,
    /// Whether another process of setup has just become this one, by [`Effect::HandOver`]: it goes on without asking.
    pub handed_over: bool,
    /// The version of the installed release that this process is of; `None` where it runs from elsewhere.
    pub release: Option<String>,
    /// The state directory, absolute.
    pub state_dir: String,
    /// Whether the registered node runs already: it is kept then, and not registered anew.
    pub running: bool,
    /// The supervisor that could keep the node, as the subject of a sentence; `None` where there is none.
    pub supervisor: Option<String>,
    /// The machine's record, and the file that it is in.
    pub machine: Option<(String, MachineRecord)>,
    /// `config.json`.
    pub registration: Option<Registration>,
    /// `join-auth.json`.
    pub join_auth: Option<JoinAuth>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Ask the operator.
    Ask(Question),
    /// Do this, and hand its end to [`Setup::result`].
    Do(Effect),
    /// Tell the operator.
    Tell(Tell),
    /// It is over.
    Done(Finish),
}

/// Something to tell the operator; text of a peer in it is printable and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tell {
    /// What it is.
    pub kind: TellKind,
    /// One line, of any length; the [agreement](AGREEMENT) and a summary have several.
    pub text: String,
}

/// What a [`Tell`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TellKind {
    /// Another part begins.
    Heading,
    /// News.
    Text,
    /// News with somebody's email address in it: for eyes, and not for a log that is kept.
    Personal,
    /// What the operator should look at.
    Warning,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which.
    pub id: QuestionId,
    /// What kind of answer it takes.
    pub kind: Kind,
    /// In words, without a question mark or colon at its end.
    pub text: &'static str,
    /// What an empty answer stands for.
    pub default: Option<String>,
    /// Why it is asked again, or what could not be found out without the operator.
    pub problem: Option<String>,
    /// What an earlier setup left and still holds, a line each: of [`QuestionId::Resume`].
    pub reuse: Vec<Reuse>,
}

impl Question {
    /// What stands in for an operator who said yes to everything beforehand. `None` where only they can tell.
    #[must_use]
    pub fn unattended(&self) -> Option<&str> {
        match self.id {
            QuestionId::Agreement => Some("yes"),
            _ => self.default.as_deref(),
        }
    }
}

/// What can be used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// What.
    pub what: Reusable,
    /// In words.
    pub text: String,
    /// Until when, in unix seconds, where it runs out.
    pub expires_at: Option<u64>,
}

/// The kinds of what can be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reusable {
    /// Answers that do not run out.
    Answers,
    /// The public addresses.
    Addresses,
    /// The release that is installed.
    Release,
    /// The authorisation of the evaluation.
    Evaluation,
    /// A verification of the email address that is under way: a code was sent.
    Code,
    /// The verified email address.
    Email,
}

/// Which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is asked in the words of its name in texts.rs")]
pub enum QuestionId {
    Resume,
    Server,
    KeepNode,
    Agreement,
    Ipv4,
    Ipv6,
    Port,
    Email,
    Code,
    Contact,
    EvmAddress,
    SolanaAddress,
    IcpAddress,
    Confirm,
    Service,
}

impl QuestionId {
    /// All, in the order in which they are asked.
    pub const ALL: [Self; 15] = [
        Self::Resume,
        Self::Server,
        Self::KeepNode,
        Self::Agreement,
        Self::Ipv4,
        Self::Ipv6,
        Self::Port,
        Self::Email,
        Self::Code,
        Self::Contact,
        Self::EvmAddress,
        Self::SolanaAddress,
        Self::IcpAddress,
        Self::Confirm,
        Self::Service,
    ];

    /// Its name for programs, and in `setup-progress.json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Server => "server",
            Self::KeepNode => "keep_node",
            Self::Agreement => "agreement",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Port => "port",
            Self::Email => "email",
            Self::Code => "code",
            Self::Contact => "contact",
            Self::EvmAddress => "evm_address",
            Self::SolanaAddress => "solana_address",
            Self::IcpAddress => "icp_address",
            Self::Confirm => "confirm",
            Self::Service => "service",
        }
    }

    /// What kind of answer it takes.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Resume | Self::KeepNode | Self::Agreement | Self::Confirm | Self::Service => Kind::YesNo,
            Self::Server => Kind::Url,
            Self::Ipv4 => Kind::Ipv4,
            Self::Ipv6 => Kind::Ipv6,
            Self::Port => Kind::Port,
            Self::Email => Kind::Email,
            Self::Code => Kind::Code,
            Self::Contact => Kind::Text,
            Self::EvmAddress => Kind::EvmAddress,
            Self::SolanaAddress => Kind::SolanaAddress,
            Self::IcpAddress => Kind::IcpAddress,
        }
    }
}

/// The kinds of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what its name says; answers.rs has what it takes")]
pub enum Kind {
    YesNo,
    Url,
    Ipv4,
    Ipv6,
    Port,
    Email,
    Code,
    Text,
    EvmAddress,
    SolanaAddress,
    IcpAddress,
}

/// An answer that cannot be taken. The question stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The question.
    pub id: QuestionId,
    /// Why.
    pub reason: String,
    /// One that could be.
    pub example: &'static str,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; for example {}", self.reason, self.example)
    }
}

impl core::error::Error for Invalid {}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Rename `setup-progress.json`, which is damaged, so that it is out of the way and can be looked at; answer with
    /// [`Outcome::Written`].
    SetProgressAside,
    /// Remove `join-auth.json`, durably, where it is there: it is of another network, or refused, and it does not say so
    /// itself; answer with [`Outcome::Written`].
    ForgetEvaluation,
    /// Replace `setup-progress.json` durably, with mode 0600; answer with [`Outcome::Written`].
    WriteProgress(Vec<u8>),
    /// See to it that the release which the network requires is installed; answer with [`Outcome::Release`].
    InstallRelease {
        /// The network.
        server: String,
    },
    /// Go on in the program of the installed release, in place of this process, with [`Settings::handed_over`] set.
    /// Only its failure is answered, with [`Outcome::NotHandedOver`].
    HandOver {
        /// The program.
        program: String,
        /// The network, for a program that asks for it.
        server: String,
    },
    /// Make this request over one address family alone; answer with [`Outcome::Fetched`].
    FindAddress {
        /// Which.
        family: Family,
        /// The request.
        fetch: Fetch,
    },
    /// Make this request to the network; answer with [`Outcome::Fetched`].
    Fetch {
        /// What for.
        purpose: Purpose,
        /// The request.
        fetch: Fetch,
    },
    /// Have the network evaluate this machine; answer with [`Outcome::Evaluated`].
    Evaluate {
        /// The network.
        server: String,
    },
    /// Register the node; answer with [`Outcome::Registered`].
    Register(Box<Registrant>),
    /// Have the node run from now on, supervised, or find out how the operator starts it; answer with
    /// [`Outcome::Service`]. The node needs the state directory: whoever has it for setup gives it up here.
    InstallService {
        /// The network.
        server: String,
        /// Whether a supervisor is to keep it.
        keep: bool,
    },
    /// Wait, for a bounded time, until the supervised node says that it is connected; answer with [`Outcome::Connected`].
    AwaitNode {
        /// The node.
        node_id: String,
    },
}

/// What a request to the network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Where it takes this machine to be.
    Region,
    /// To have a code sent.
    EmailStart,
    /// To have a code checked.
    EmailVerify,
}

/// Who registers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the one of its name in registration::Settings")]
pub struct Registrant {
    pub server: String,
    pub email: Option<String>,
    pub email_verification_token: String,
    pub ipv4: String,
    pub ipv6: Option<String>,
    pub port: u16,
    pub contact: String,
    pub evm_address: String,
    pub solana_address: String,
    pub icp_address: String,
    pub region: Option<String>,
}

/// How an effect ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Of [`Effect::SetProgressAside`], [`Effect::ForgetEvaluation`] and [`Effect::WriteProgress`]; the error names the
    /// file.
    Written(Result<(), String>),
    /// Of [`Effect::InstallRelease`].
    Release(Result<Release, Finish>),
    /// Of [`Effect::HandOver`], which failed.
    NotHandedOver(String),
    /// Of [`Effect::FindAddress`] and [`Effect::Fetch`].
    Fetched(Result<Response, FetchError>),
    /// Of [`Effect::Evaluate`]: the authorisation that is in `join-auth.json` now.
    Evaluated(Result<JoinAuth, Finish>),
    /// Of [`Effect::Register`]: what is in `config.json` now, or how it ended and what the answer to the join request
    /// had for a status, if one came.
    Registered(Result<Box<Registration>, (Finish, Option<u16>)>),
    /// Of [`Effect::InstallService`].
    Service(Result<Service, Finish>),
    /// Of [`Effect::AwaitNode`]: or why it is not, and what that makes of the exit code.
    Connected(Result<(), Finish>),
}

/// What is known of the release that is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The network requires none: this program stays.
    NotRequired,
    /// This process is of it, from its install directory.
    Runs {
        /// Its version.
        version: String,
    },
    /// It was installed just now.
    Installed {
        /// Its version.
        version: String,
        /// Its program.
        program: String,
    },
}

/// How the node is kept running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// A supervisor runs it.
    Installed {
        /// In words.
        text: String,
        /// What went wrong on the way, and does not stop the node.
        warnings: Vec<String>,
    },
    /// The operator starts it.
    ByHand {
        /// Why no supervisor does, where that was not the operator's own wish.
        why: Option<String>,
        /// Lines to type.
        lines: Vec<String>,
    },
}

#[cfg(test)]
mod tests;
