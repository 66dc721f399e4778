//! Hydration: copies the blocks that are still in the base only, so that the volume no longer needs the
//! image.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::{BLOCK, Volume, sparse, total};
use crate::block::Backend;
use crate::block::space::is_full;
use crate::event::{EventSet, Poller, WorkerThread};
use crate::sandbox::Kind;

/// Bytes copied in one step. The transition lock is held while one step is written, so this bounds how long a
/// guest's first write to a block can wait.
const STEP: u64 = 256 << 10;
/// Rest after a step that found no space: what the guest writes comes first.
const FULL_PAUSE: Duration = Duration::from_secs(5);
/// Rest after each step: hydration takes what the disk has left, at most about 250 MB/s.
const PAUSE: Duration = Duration::from_millis(1);

impl Volume {
    /// Copies the next step from byte `at` of the base on. Returns where to go on, or `None` when the volume
    /// stands alone.
    ///
    /// # Errors
    /// When the base cannot be read or is damaged, or the volume cannot be written. Nothing is lost, and the
    /// step can be tried again.
    pub fn hydrate(&self, at: u64) -> io::Result<Option<u64>> {
        let Some(lazy) = self.lazy() else { return Ok(None) };
        let Some(data) = lazy.base.next_data(at)? else {
            self.stand_alone()?;
            return Ok(None);
        };
        let start = data.start / BLOCK * BLOCK;
        let end = data
            .end
            .div_ceil(BLOCK)
            .saturating_mul(BLOCK)
            .min(start + STEP)
            .min(self.size());
        let blocks = lazy.touched(start, end - start);
        if !lazy.present.contains_all(blocks.clone()) {
            let mut data = vec![0; (end - start) as usize];
            lazy.base.read_at(start, &[VolatileSlice::from(&mut data[..])])?;
            let _held = lazy.lock();
            let mut block = blocks.start;
            while block < blocks.end {
                let run = lazy.present.run_end(block, blocks.end);
                let bytes = &mut data[(block * BLOCK - start) as usize..(run * BLOCK - start) as usize];
                // Zeros need no copy: the hole that stays reads the same from the base now and from the file
                // later.
                if !lazy.present.contains(block) && bytes.iter().any(|&byte| byte != 0) {
                    let slice = [VolatileSlice::from(bytes)];
                    debug_assert_eq!(total(&slice), (run - block) * BLOCK);
                    self.store(lazy, block * BLOCK, &slice, block..run)?;
                }
                block = run;
            }
        }
        Ok(Some(end))
    }

    /// All of the base is in the file or reads as zeros: makes that durable, then says so in the file.
    fn stand_alone(&self) -> io::Result<()> {
        self.flush()?;
        self.cut_tail()?;
        self.standalone.store(true, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// Bytes of the file that are data.
    ///
    /// # Errors
    /// What the file system says.
    pub fn allocated(&self) -> io::Result<u64> {
        let (mut at, mut sum) = (0, 0);
        while let Some(data) = sparse::next_data(&self.file, at)? {
            sum += data.end.min(self.size).saturating_sub(data.start);
            at = data.end;
        }
        Ok(sum)
    }
}

/// Hydrates a volume in the background.
pub struct Hydration {
    worker: WorkerThread<()>,
}

impl Hydration {
    /// Starts to hydrate `volume`. It ends by itself when the volume stands alone. Where the file system has
    /// no space, `full` is called once and the step is tried again later. Any other error is logged and ends
    /// it, since the volume works as before and the next launch tries again.
    ///
    /// # Errors
    /// When no thread is available.
    pub fn start(volume: Arc<Volume>, full: Box<dyn Fn(&io::Error) + Send>) -> io::Result<Self> {
        let worker = WorkerThread::spawn("hydrate", Kind::Block, move |stop| {
            let done = Poller::new().and_then(|poller| {
                poller.add(&stop, EventSet::IN, 0u64)?;
                let mut ready = Vec::new();
                let (mut at, mut reported) = (0, false);
                loop {
                    let pause = match volume.hydrate(at) {
                        Ok(None) => return Ok(()),
                        Ok(Some(next)) => {
                            (at, reported) = (next, false);
                            PAUSE
                        }
                        Err(error) if is_full(&error) => {
                            if !std::mem::replace(&mut reported, true) {
                                full(&error);
                            }
                            FULL_PAUSE
                        }
                        Err(error) => return Err(error),
                    };
                    poller.wait(&mut ready, Some(pause))?;
                    if !ready.is_empty() {
                        return Ok(());
                    }
                }
            });
            if let Err(error) = done {
                tracing::warn!("the root volume keeps needing its image: {error}");
            }
        })?;
        Ok(Hydration { worker })
    }

    /// Stops hydrating, wherever it is.
    pub fn stop(self) {
        self.worker.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::volume::Base;
    use std::fs::{self, File};
    use std::sync::mpsc::channel;

    #[test]
    fn a_full_file_system_is_reported_and_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, vec![7; 1 << 20]).unwrap();
        let base = Base::new(File::open(&image).unwrap(), 0, 1 << 20, [7; 32]);
        let mut volume = Volume::create(&directory.path().join("volume"), base, 1 << 20).unwrap();
        volume.file = File::options().read(true).write(true).open("/dev/full").unwrap();
        let (report, reports) = channel();
        let full = move |error: &io::Error| report.send(error.kind()).unwrap();
        let hydration = Hydration::start(Arc::new(volume), Box::new(full)).unwrap();
        assert_eq!(reports.recv().unwrap(), io::ErrorKind::StorageFull);
        // It has not given up: its report's other end is still there.
        assert_eq!(reports.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
        hydration.stop();
        assert!(reports.recv().is_err(), "reported once");
    }
}
