/* What this host knows of registries: Docker's credentials, and mirrors and trust of ours. */
#pragma once

#include "image/internal.h"

struct credentials {
	char *user; /* NULL: none */
	char *password;
	char *identity_token; /* instead of user and password */
};

/*
 * From $DOCKER_CONFIG/config.json or ~/.docker/config.json: "auths", "credHelpers" and
 * "credsStore". None is no error.
 */
__must_check int credentials_find(const char *domain, struct credentials *ret, struct error *err);
void credentials_fini(struct credentials *c);
/* The parser by itself. @text is the file. */
__must_check int credentials_parse(const char *text, size_t n, const char *domain,
				   struct credentials *ret, char **ret_helper, struct error *err);

struct registry_settings {
	char **mirrors; /* base URLs, tried in order before the registry itself */
	char *ca_file;
	bool insecure; /* http is tried, and any certificate is accepted */
};

/* From $CAISSON_REGISTRIES or /etc/caisson/registries.json; a missing file is no error. */
__must_check int registry_settings_find(const char *domain, struct registry_settings *ret,
					struct error *err);
void registry_settings_fini(struct registry_settings *s);

/* The parameters of a challenge "Bearer realm=...,service=...,scope=...". */
struct challenge {
	bool bearer;
	bool basic;
	char *realm;
	char *service;
	char *scope;
};

/* Of the challenges in @header, takes the first bearer one. */
__must_check int challenge_parse(const char *header, struct challenge *ret);
void challenge_fini(struct challenge *c);
