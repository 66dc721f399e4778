//! Arguments whose clap definitions are built only when their command is called.
//!
//! A launch needs the arguments of one command. Building those of all commands would be most of the code that
//! it runs before the machine is made.

use clap::{ArgMatches, Args, Error, FromArgMatches};

/// The arguments `T` of a command.
#[derive(Debug)]
pub struct DeferredArgs<T>(pub T);

impl<T: Args> Args for DeferredArgs<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.defer(T::augment_args)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command.defer(T::augment_args_for_update)
    }
}

impl<T: FromArgMatches> FromArgMatches for DeferredArgs<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<DeferredArgs<T>, Error> {
        T::from_arg_matches(matches).map(DeferredArgs)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}
