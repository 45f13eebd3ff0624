//! What setup says: the words of questions, of what can be used again, and of the summary.

use alloc::format;
use alloc::string::String;

use super::QuestionId;
use super::answers::{Answers, NONE, VALUES};

pub(super) const fn question(id: QuestionId) -> &'static str {
    match id {
        QuestionId::Resume => "Use this again",
        QuestionId::Server => "The network's server",
        QuestionId::KeepNode => "Keep this registration",
        QuestionId::Agreement => "Do you agree, and may this machine do this",
        QuestionId::Ipv4 => "Public IPv4 address of this machine",
        QuestionId::Ipv6 => "Public IPv6 address, or none",
        QuestionId::Port => "Port that the network is told",
        QuestionId::Email => "Your email address; a code is sent there",
        QuestionId::Code => "The code that was sent by email, or the word again for another",
        QuestionId::Contact => "How the network can reach you",
        QuestionId::EvmAddress => "Where you are paid: EVM address",
        QuestionId::SolanaAddress => "Where you are paid: Solana address",
        QuestionId::IcpAddress => "Where you are paid: ICP principal",
        QuestionId::Confirm => "Register with this (no asks everything again)",
        QuestionId::Service => "Keep the node running as a service",
    }
}

const fn name(id: QuestionId) -> &'static str {
    match id {
        QuestionId::Server => "network",
        QuestionId::Ipv4 => "IPv4",
        QuestionId::Ipv6 => "IPv6",
        QuestionId::Port => "port",
        QuestionId::Email => "email",
        QuestionId::Contact => "contact",
        QuestionId::EvmAddress => "EVM",
        QuestionId::SolanaAddress => "Solana",
        QuestionId::IcpAddress => "ICP",
        QuestionId::Resume
        | QuestionId::KeepNode
        | QuestionId::Agreement
        | QuestionId::Code
        | QuestionId::Confirm
        | QuestionId::Service => "",
    }
}

/// What was answered, a line each.
pub(super) fn summary(answers: &Answers, region: Option<&str>) -> String {
    let mut text = String::from("This is what the network is told:");
    for id in VALUES {
        if let Some(value) = answers.get(&id).filter(|_| id != QuestionId::Service) {
            text.push_str(&format!("\n  {:<9}{value}", name(id)));
        }
    }
    if let Some(region) = region {
        text.push_str(&format!("\n  {:<9}{region}", "region"));
    }
    text
}

/// Some answers, in one line.
pub(super) fn listed(answers: &Answers, ids: &[QuestionId]) -> Option<String> {
    let known = ids.iter().filter_map(|id| Some((id, answers.get(id).filter(|text| *text != NONE)?)));
    let mut text = String::new();
    for (id, value) in known {
        let separator = if text.is_empty() { "" } else { ", " };
        text.push_str(&format!("{separator}{} {value}", name(*id)));
    }
    (!text.is_empty()).then_some(text)
}

/// How long something still holds.
pub(super) fn left(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
