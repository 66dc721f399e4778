//! Pages that began to hold code while translations still let stores pass: all processors have to watch such
//! stores before a block of the page may be kept.

use std::collections::VecDeque;

use crate::core::counters::Counters;
use crate::core::mailbox::Mailbox;
use crate::core::processors::Processors;
use crate::core::ram::Ram;
use crate::core::tlb::Tlb;

/// Most pages whose watching is waited for; the oldest is asked for again when it is needed.
const MOST: usize = 64;

/// The pages that one processor waits for, oldest first.
#[derive(Default)]
pub(crate) struct Unsettled(VecDeque<Request>);

/// A page of code whose watching was asked for.
struct Request {
    page: u64,
    version: u32,
    /// The number of the request.
    number: u64,
}

/// The processor that asks, and what it asks about.
pub(crate) struct Asker<'a> {
    pub ram: &'a Ram,
    pub tlb: &'a mut Tlb,
    pub processors: &'a Processors,
    pub mailbox: &'a Mailbox,
    pub counters: &'a mut Counters,
}

impl Unsettled {
    /// Lets stores to a page of code be watched, by this processor at once and by the others before their
    /// next block. Returns whether all do.
    #[cold]
    pub fn settle(&mut self, asker: Asker, page: u64, version: u32) -> bool {
        let Asker {
            ram,
            tlb,
            processors,
            mailbox,
            counters,
        } = asker;
        let Unsettled(waiting) = self;
        let asked = waiting.iter().position(|asked| asked.page == page);
        if let Some(index) = asked
            && waiting[index].version == version
            && !processors.others_watch(waiting[index].number, mailbox)
        {
            return false;
        }
        // Another version: it may have been opened since, and is asked for anew.
        let asked = asked.and_then(|index| waiting.remove(index));
        if asked.is_none_or(|asked| asked.version != version) {
            counters.pages_watched += 1;
            tlb.watch(page);
            if processors.is_shared() {
                if waiting.len() == MOST {
                    waiting.pop_front();
                }
                let number = processors.watch_others(mailbox);
                waiting.push_back(Request {
                    page,
                    version,
                    number,
                });
                return false;
            }
        }
        ram.page(page).is_some_and(|code| code.settle(version))
    }
}
