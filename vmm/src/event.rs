//! Epoll with typed tokens, and worker threads that hand back their state.
