//! Packet headers of the socket device (VIRTIO 1.3 §5.10.6), encoded and decoded by the crate `virtio-vsock`.

#![allow(unsafe_code)]

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

/// Length of a header in bytes.
pub const HEADER: usize = PKT_HEADER_SIZE;
/// Socket type: a stream of bytes, the only one offered.
pub const STREAM: u16 = 1;

/// Operations (VIRTIO 1.3 §5.10.6).
pub mod op {
    #![allow(missing_docs)]
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`]: what the sender will no longer do.
pub mod shutdown {
    /// Receive.
    pub const RECEIVE: u32 = 1;
    /// Send.
    pub const SEND: u32 = 2;
    /// Either.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation.
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of its receive buffer so far, modulo 2³².
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn decode(mut bytes: [u8; HEADER]) -> Self {
        let copy = bytes;
        // SAFETY: the packet borrows `bytes` for the lifetime that `new` lets us choose; it lives in this
        // function only, and nothing else uses `bytes` meanwhile.
        let packet = unsafe { VsockPacket::new(&mut bytes, None) };
        let Ok(mut packet) = packet else {
            unreachable!("the slice has the length of a header")
        };
        let Ok(()) = packet.set_header_from_raw(&copy) else {
            unreachable!("as above")
        };
        Header {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            kind: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        }
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        {
            // SAFETY: the packet borrows `bytes` for the lifetime that `new` lets us choose; it lives in this
            // block only, and nothing else uses `bytes` meanwhile.
            let packet = unsafe { VsockPacket::new(&mut bytes, None) };
            let Ok(mut packet) = packet else {
                unreachable!("the slice has the length of a header")
            };
            packet
                .set_src_cid(self.src_cid)
                .set_dst_cid(self.dst_cid)
                .set_src_port(self.src_port)
                .set_dst_port(self.dst_port)
                .set_len(self.len)
                .set_type(self.kind)
                .set_op(self.op)
                .set_flags(self.flags)
                .set_buf_alloc(self.buf_alloc)
                .set_fwd_cnt(self.fwd_cnt);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_are_little_endian() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x1234_5678,
            dst_port: 5,
            len: 6,
            kind: STREAM,
            op: op::RW,
            flags: 7,
            buf_alloc: 8,
            fwd_cnt: 9,
        };
        let bytes = header.encode();
        assert_eq!(
            bytes[..20],
            [
                3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x78, 0x56, 0x34, 0x12
            ]
        );
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(Header::decode(bytes), header);
    }
}
