/* Caps on what an image may make us allocate, write or do. */
#pragma once

#define LIMIT_MANIFEST_BYTES (4u << 20)
#define LIMIT_CONFIG_BYTES   (8u << 20)
#define LIMIT_INDEX_ENTRIES  4096u
#define LIMIT_LAYERS         512u
#define LIMIT_INDEX_DEPTH    4u
#define LIMIT_STRINGS        16384u /* of one list in a config */

/* A layer that unpacks to more than this many times its size is refused ... */
#define LIMIT_LAYER_RATIO 200u
/* ... unless what it unpacks to is smaller than this. */
#define LIMIT_LAYER_FREE (16ull << 20)
/* All layers of an image together, as file sizes; CAISSON_IMAGE_MAX_SIZE overrides it. */
#define LIMIT_IMAGE_BYTES   (64ull << 30)
#define LIMIT_IMAGE_ENTRIES (4u << 20)
#define LIMIT_ENTRY_PATH    4096u
#define LIMIT_ENTRY_DEPTH   256u
#define LIMIT_ENTRY_XATTRS  128u
#define LIMIT_XATTR_BYTES   65536u
#define LIMIT_SYMLINKS      40u

/* Archives handed to `load`. */
#define LIMIT_ARCHIVE_ENTRIES 65536u

/* Registries. */
#define LIMIT_TRIES           5
#define LIMIT_REDIRECTS       10
#define LIMIT_TOKEN_BYTES     (1u << 20)
#define LIMIT_CONNECT_SECONDS 15
#define LIMIT_STALL_SECONDS   30
#define LIMIT_DOCKER_CONFIG   (1u << 20)
