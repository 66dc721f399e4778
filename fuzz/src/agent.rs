//! Messages of a guest's agent to the host, as a compromised guest may send them, and requests on the control
//! socket.

use std::fs;

use guest_init::archive;
use guest_init::proto::{self, Ended, Failure, Ready};
use instance::api::http;

use crate::input::Input;
use crate::scratch;

/// The first byte chooses what the rest is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => frames(input.rest()),
        1 => copied(input.rest(), true),
        2 => copied(input.rest(), false),
        _ => {
            let rest = input.rest();
            for end in [rest.len() / 2, rest.len()] {
                let _ = http::parse_request(&rest[..end]);
                let _ = http::parse_response(&rest[..end]);
            }
        }
    }
}

fn frames(mut stream: &[u8]) {
    while let Ok(Some(frame)) = proto::read_frame(&mut stream) {
        let _ = frame.message::<Ended>();
        let _ = frame.message::<Failure>();
        let _ = frame.message::<Ready>();
        let _ = frame.message::<proto::Request>();
    }
}

/// An archive that `vmm cp` receives; what stands beside the folder stays as it was.
fn copied(bytes: &[u8], into_folder: bool) {
    let outside = scratch::folder();
    let sentinel = outside.path().join("sentinel");
    scratch::write(&sentinel, b"untouched");
    let folder = outside.path().join("folder");
    fs::create_dir(&folder).expect("room for a folder");
    let to = if into_folder { folder } else { folder.join("new") };
    let _ = archive::unpack(bytes, &to, archive::Receiver::Host);
    assert_eq!(fs::read(&sentinel).expect("it is there"), b"untouched");
    let beside = fs::read_dir(outside.path()).expect("it is there").count();
    assert_eq!(beside, 2, "something came to lie beside the folder");
}
