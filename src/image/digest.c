/* Content digests: sha256 only, as every registry and archive of use has them. */
#include "image/internal.h"

#include <openssl/evp.h>
#include <string.h>

struct hasher {
	EVP_MD_CTX *ctx;
};

int hasher_new(struct hasher **ret)
{
	struct hasher *h = calloc(1, sizeof(*h));

	if (!h)
		return -ENOMEM;
	h->ctx = EVP_MD_CTX_new();
	if (!h->ctx || EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL) != 1) {
		hasher_free(h);
		return -ENOMEM;
	}
	*ret = h;
	return 0;
}

void hasher_free(struct hasher *h)
{
	if (!h)
		return;
	EVP_MD_CTX_free(h->ctx);
	free(h);
}

int hasher_update(struct hasher *h, const void *data, size_t n)
{
	return EVP_DigestUpdate(h->ctx, data, n) == 1 ? 0 : -EIO;
}

int hasher_digest(struct hasher *h, struct digest *ret)
{
	unsigned char md[EVP_MAX_MD_SIZE];
	unsigned int len = 0;
	EVP_MD_CTX *copy = EVP_MD_CTX_new();
	int r = -EIO;

	if (!copy)
		return -ENOMEM;
	if (EVP_MD_CTX_copy_ex(copy, h->ctx) == 1 && EVP_DigestFinal_ex(copy, md, &len) == 1 &&
	    len == DIGEST_HEX_LEN / 2) {
		memcpy(ret->s, "sha256:", 7);
		str_hex(ret->s + 7, md, len);
		r = 0;
	}
	EVP_MD_CTX_free(copy);
	return r;
}

int digest_of(const void *data, size_t n, struct digest *ret)
{
	auto_hasher struct hasher *h = NULL;
	int r = hasher_new(&h);

	if (r < 0)
		return r;
	r = hasher_update(h, data, n);
	return r < 0 ? r : hasher_digest(h, ret);
}

static bool is_lower_hex(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'f')))
			return false;
	return true;
}

int digest_parse(const char *s, struct digest *ret)
{
	const char *colon = s ? strchr(s, ':') : NULL;
	size_t n;

	if (!colon || colon == s)
		return -EINVAL;
	n = strlen(colon + 1);
	if (!str_has_prefix(s, "sha256:"))
		return n >= 32 && is_lower_hex(colon + 1, n) ? -ENOTSUP : -EINVAL;
	if (n != DIGEST_HEX_LEN || !is_lower_hex(colon + 1, n))
		return -EINVAL;
	memcpy(ret->s, s, sizeof(ret->s));
	return 0;
}
