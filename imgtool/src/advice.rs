//! Advice that errors carry: what to try.

use std::borrow::Cow;

/// Why something failed, where several libraries can be the reason: the error itself, or a sentence of ours.
pub type Reason = Box<dyn std::error::Error + Send + Sync>;

/// An error that can say what to try. Its `Display` says what failed and why.
pub trait Advice: std::error::Error {
    /// What to try, without a full stop; `None` where only the caller can know.
    fn advice(&self) -> Option<Cow<'static, str>>;

    /// The error as a person reads it: what failed and why, and what to try in a line of its own.
    fn report(&self) -> String {
        match self.advice() {
            Some(advice) => format!("{self}\n  try: {advice}"),
            None => self.to_string(),
        }
    }
}

impl Advice for ami::Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(self.hint().into())
    }
}
