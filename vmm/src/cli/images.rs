//! `images` and `image …`: the image store.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::failure::Advice;
use super::stream::{Stream, line};
use super::{Context, Status, failure, output};
use instance::images::image::Image;
use instance::images::{Removed, Stored};
use instance::service::{DeregisterImage, RegisterImage, Service};

/// Bytes of an image in one piece.
const PIECE: usize = 1 << 20;

/// List the images in the store
#[derive(Debug, Args)]
pub struct List {
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

impl List {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let stored = context.service.describe_images()?;
        if self.quiet {
            output::lines(stored.iter().map(|s| &s.id))?;
        } else if self.json {
            output::json(&stored.iter().map(summary).collect::<Vec<_>>())?;
        } else {
            let rows: Vec<_> = stored.iter().map(row).collect();
            output::table(&["ID", "NAMES", "ARCH", "ROOT", "ON DISK", "DESCRIPTION"], &rows)?;
        }
        for error in stored.into_iter().filter_map(|s| s.image.err()) {
            failure::complain(&error.into());
        }
        Ok(Status::OK)
    }
}

fn row(stored: &Stored) -> Vec<String> {
    let (architecture, root, description) = match &stored.image {
        Ok(image) => {
            let manifest = image.manifest();
            (
                manifest.architecture.to_string(),
                output::size(image.root_size()),
                manifest.description.clone(),
            )
        }
        Err(_) => ("?".into(), "?".into(), "damaged".into()),
    };
    let names = stored.names.join(", ");
    vec![
        stored.id.clone(),
        names,
        architecture,
        root,
        output::size(stored.allocated),
        description,
    ]
}

fn summary(stored: &Stored) -> Value {
    json!({
        "id": stored.id,
        "names": stored.names,
        "path": stored.path,
        "size": stored.size,
        "allocated": stored.allocated,
        "manifest": stored.image.as_ref().ok().map(Image::manifest),
        "error": stored.image.as_ref().err().map(ToString::to_string),
    })
}

/// Work on images in the store
#[derive(Debug, Args)]
pub struct One {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the manifest of images, as JSON
    Inspect {
        /// Ids, beginnings of ids, names, or AMI files
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Give an image a further name
    Tag {
        /// Id, beginning of an id, or name
        image: String,
        /// NAME or NAME:TAG
        name: String,
    },
    /// Remove images, or a name of an image that has several
    Rm {
        /// Complete the root volumes that still read from the image, instead of refusing
        #[arg(short, long)]
        force: bool,
        /// Ids, beginnings of ids, or names
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Verify an AMI file and copy it into the store
    Import {
        /// The file
        file: PathBuf,
        /// NAME or NAME:TAG (default: the file's name without `.ami`)
        name: Option<String>,
    },
    /// Copy an image out of the store
    Export {
        /// Id, beginning of an id, or name
        image: String,
        /// The file to write, which must not exist; `-` writes to standard output
        file: PathBuf,
    },
}

impl One {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let service = &context.service;
        match self.command {
            Command::Inspect { images } => inspect(service, &images)?,
            Command::Tag { image, name } => line(service.tag_image(&image, &name)?)?,
            Command::Rm { force, images } => return remove(service, images, force),
            Command::Import { file, name } => {
                let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                let name = name.or_else(stem);
                line(service.register_image(&RegisterImage { path: file, name })?)?;
            }
            Command::Export { image, file } if file == Path::new("-") => {
                export(&service.image_file(&image)?)?;
            }
            Command::Export { image, file } => service.export_image(&image, &file)?,
        }
        Ok(Status::OK)
    }
}

/// An image to standard output, byte for byte.
fn export(path: &Path) -> anyhow::Result<()> {
    if io::stdout().is_terminal() {
        return Err(Advice::new(
            "an image is nothing for a terminal",
            "redirect it to a file or a program",
        )
        .into());
    }
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).with_context(failed)? {
            0 => return Ok(()),
            got => Stream::Output.put(&piece[..got])?,
        }
    }
}

fn inspect(service: &Service, wanted: &[String]) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for text in wanted {
        let image = service.open_image(text)?;
        let mut value = serde_json::to_value(image.manifest())?;
        if let Value::Object(fields) = &mut value {
            fields.insert("id".into(), image.id().into());
            fields.insert("path".into(), image.path().display().to_string().into());
        }
        found.push(value);
    }
    output::json(&found)
}

fn remove(service: &Service, images: Vec<String>, force: bool) -> anyhow::Result<Status> {
    let mut status = Status::OK;
    let mut printed = Ok(());
    for image in images {
        match service.deregister_image(&DeregisterImage { image, force }) {
            Ok(Removed::Name(name)) => printed = printed.and(line(format_args!("untagged {name}"))),
            Ok(Removed::Image(id)) => printed = printed.and(line(format_args!("removed {id}"))),
            Err(error) => {
                failure::complain(&error.into());
                status = Status::VMM_FAILED;
            }
        }
    }
    printed?;
    Ok(status)
}
