//! The AMI file: manifest, GPT layout, reader, writer, digests, signature.
