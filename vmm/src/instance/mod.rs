//! Instances: ids, state directories, life cycle, control socket, create-image.
