//! What a fuzzer wrote, read as small decisions.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

/// Bytes that are taken from the front; what is missing is zero.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) data: VecDeque<u8>,
}

impl Script {
    pub(super) fn byte(&mut self) -> u8 {
        self.data.pop_front().unwrap_or(0)
    }

    pub(super) fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()) << (self.byte() % 4);
        let len = len.min(self.data.len());
        self.data.drain(..len).collect()
    }

    pub(super) fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}
