//! Images in the store, and making one of an instance.

use std::path::{Path, PathBuf};

use super::Service;
use crate::Result;
use crate::images::image::Image;
use crate::images::{Removed, Stored};

/// A file that is to become an image in the store.
#[derive(Debug, Clone)]
pub struct RegisterImage {
    /// The AMI file; it stays where it is.
    pub path: PathBuf,
    /// `NAME` or `NAME:TAG`.
    pub name: Option<String>,
}

/// A removal of an image, or of one of its names.
#[derive(Debug, Clone)]
pub struct DeregisterImage {
    /// The image.
    pub image: String,
    /// Completes the root volumes that still read from it, instead of refusing.
    pub force: bool,
}

/// A new image of an instance.
#[derive(Debug, Clone)]
pub struct CreateImage {
    /// The instance.
    pub instance: String,
    /// The image's name, and its name in the store.
    pub name: String,
    /// A paragraph for people; the parent's when absent.
    pub description: Option<String>,
    /// Freezes the running guest's file systems instead of restarting it.
    pub no_reboot: bool,
    /// Leaves host keys, machine-id, logs and so on in the image.
    pub keep_identity: bool,
}

/// An image that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedImage {
    /// Its id.
    pub id: String,
    /// Why its file system may not be clean, if so.
    pub warning: Option<String>,
}

impl Service {
    /// Every image in the store, by id.
    ///
    /// # Errors
    /// When the store cannot be read. An image that cannot is among the others, with the reason.
    pub fn describe_images(&self) -> Result<Vec<Stored>> {
        self.images.list()
    }

    /// The image that `text` names, opened; the path of an AMI file names one as well.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn open_image(&self, text: &str) -> Result<Image> {
        Image::open(&self.images.resolve(text)?)
    }

    /// The file of the image that `text` names.
    ///
    /// # Errors
    /// When there is none.
    pub fn image_file(&self, text: &str) -> Result<PathBuf> {
        self.images.resolve(text)
    }

    /// Verifies a file and copies it into the store. Returns the image's id.
    ///
    /// # Errors
    /// When it is not an AMI, or is damaged, or cannot be copied.
    pub fn register_image(&self, request: &RegisterImage) -> Result<String> {
        self.images.import(&request.path, request.name.as_deref())
    }

    /// Gives an image a further name, which may have been another's. Returns the image's id.
    ///
    /// # Errors
    /// When there is no such image, or this is not a name.
    pub fn tag_image(&self, image: &str, name: &str) -> Result<String> {
        self.images.tag(image, name)
    }

    /// Removes an image, or the name of an image that has several.
    ///
    /// # Errors
    /// When there is no such image, or instances need it.
    pub fn deregister_image(&self, request: &DeregisterImage) -> Result<Removed> {
        self.images.remove(&request.image, request.force, &self.store)
    }

    /// Copies an image to a file, which must not exist.
    ///
    /// # Errors
    /// When there is no such image, or the file cannot be written.
    pub fn export_image(&self, image: &str, to: &Path) -> Result<()> {
        self.images.export(image, to)
    }

    /// Makes an image of an instance and puts it into the store.
    ///
    /// # Errors
    /// When there is no such instance, it cannot be copied, or its identity cannot be removed.
    pub fn create_image(&self, request: &CreateImage) -> Result<CreatedImage> {
        request.run(&self.store, &self.images)
    }
}
