//! Pairs of operations that are run as one.

use crate::op::Op;

/// Looks for pairs in a new block.
pub(crate) fn fuse(_ops: &mut Vec<Op>) {}
