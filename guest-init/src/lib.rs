//! What the host and the guest agent say to each other (`proto`), and the parts of PID 1 worth testing apart.
