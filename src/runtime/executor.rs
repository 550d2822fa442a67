//! smol's local executor, which is given its futures boxed: one copy of a task's machinery in the binary for each
//! kind of answer, not one for each future.

use std::pin::Pin;

use smol::{LocalExecutor, Task};

pub(super) struct Executor<'a>(LocalExecutor<'a>);

impl<'a> Executor<'a> {
    pub(super) const fn new() -> Self {
        Self(LocalExecutor::new())
    }

    pub(super) fn spawn<T: 'a>(&self, future: impl Future<Output = T> + 'a) -> Task<T> {
        let future: Pin<Box<dyn Future<Output = T> + 'a>> = Box::pin(future);
        self.0.spawn(future)
    }

    pub(super) async fn run<T>(&self, main: impl Future<Output = T>) -> T {
        self.0.run(main).await
    }
}
