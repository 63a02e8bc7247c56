# Builds a disk image without a machine: unpacks a root tree, runs a playbook against it, writes it to a disk.
# By hand: packer build -var-file=VALUES.json THIS_FOLDER

variable "specification" {
  type        = string
  description = "JSON file that says what to build; see plugins/module_utils/_rootfs_build.py."
}

variable "image" {
  type        = string
  description = "The image that comes out, as the specification names it."
}

variable "python" {
  type        = string
  description = "The Python that runs the program; it has ansible-core."
}

variable "collections_path" {
  type        = string
  description = "Folder that has ansible_collections/goldsmith/images."
}

source "null" "image" {
  communicator = "none"
}

build {
  sources = ["source.null.image"]

  provisioner "shell-local" {
    environment_vars = [
      "PYTHONPATH=${var.collections_path}",
      "PYTHONUNBUFFERED=1",
      "SPECIFICATION=${var.specification}",
      "PYTHON=${var.python}",
    ]
    inline_shebang = "/bin/sh -e"
    inline         = ["exec \"$PYTHON\" -m ansible_collections.goldsmith.images.plugins.module_utils._rootfs_build \"$SPECIFICATION\""]
  }

  post-processor "artifice" {
    files = [var.image]
  }
}
