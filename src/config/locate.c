/* SPDX-License-Identifier: Apache-2.0 */
/* Walks the YAML document beside the schema. */
#include "config/locate.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <yaml.h>

static bool load_document(yaml_document_t *doc, const char *text, size_t len,
			  unsigned *ret_line, const char **ret_problem)
{
	yaml_parser_t parser;
	bool ok;

	*ret_line = 1;
	*ret_problem = "out of memory";
	if (!yaml_parser_initialize(&parser))
		return false;
	yaml_parser_set_input_string(&parser, (const unsigned char *)text, len);
	ok = yaml_parser_load(&parser, doc);
	if (!ok) {
		*ret_line = (unsigned)parser.problem_mark.line + 1;
		*ret_problem = parser.problem ? parser.problem : "not YAML";
	}
	yaml_parser_delete(&parser);
	return ok;
}

static const char *node_text(const yaml_node_t *node)
{
	return node && node->type == YAML_SCALAR_NODE ? (const char *)node->data.scalar.value : NULL;
}

static unsigned node_line(const yaml_node_t *node)
{
	return (unsigned)node->start_mark.line + 1;
}

static yaml_node_t *find_key(yaml_document_t *doc, yaml_node_t *map, const char *key,
			     yaml_node_t **ret_value)
{
	if (!map || map->type != YAML_MAPPING_NODE)
		return NULL;
	for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top;
	     p++) {
		yaml_node_t *k = yaml_document_get_node(doc, p->key);
		const char *name = node_text(k);

		if (name && strcmp(name, key) == 0) {
			if (ret_value)
				*ret_value = yaml_document_get_node(doc, p->value);
			return k;
		}
	}
	return NULL;
}

unsigned locate_key(const char *text, size_t len, const char *section, const char *key)
{
	yaml_node_t *map, *found;
	const char *problem;
	yaml_document_t doc;
	unsigned line = 0;

	if (!load_document(&doc, text, len, &line, &problem))
		return 0;
	line = 0;
	map = yaml_document_get_root_node(&doc);
	if (section && !find_key(&doc, map, section, &map))
		map = NULL;
	found = find_key(&doc, map, key, NULL);
	if (found)
		line = node_line(found);
	yaml_document_delete(&doc);
	return line;
}

static int check_node(yaml_document_t *doc, yaml_node_t *node, const cyaml_schema_value_t *schema,
		      const char *file, const char *where, struct error *err)
{
	if (schema->type == CYAML_STRING) {
		if (node->type != YAML_SCALAR_NODE)
			return error_set(err, -EINVAL, "%s:%u: '%s' must be a single value", file,
					 node_line(node), where);
		return 0;
	}
	if (schema->type == CYAML_SEQUENCE) {
		if (node->type != YAML_SEQUENCE_NODE)
			return error_set(err, -EINVAL, "%s:%u: '%s' must be a list", file,
					 node_line(node), where);
		for (yaml_node_item_t *i = node->data.sequence.items.start;
		     i < node->data.sequence.items.top; i++) {
			int r = check_node(doc, yaml_document_get_node(doc, *i),
					   schema->sequence.entry, file, where, err);

			if (r < 0)
				return r;
		}
		return 0;
	}
	if (node->type != YAML_MAPPING_NODE)
		return error_set(err, -EINVAL, "%s:%u: '%s' must hold 'key: value' lines", file,
				 node_line(node), where);

	for (yaml_node_pair_t *p = node->data.mapping.pairs.start;
	     p < node->data.mapping.pairs.top; p++) {
		yaml_node_t *k = yaml_document_get_node(doc, p->key);
		const cyaml_schema_field_t *field = schema->mapping.fields;
		const char *name = node_text(k);
		int r;

		while (field->key && (!name || strcmp(field->key, name) != 0))
			field++;
		if (!field->key)
			return error_set(err, -EINVAL, "%s:%u: unknown key '%s'%s%s%s", file,
					 node_line(k), name ? name : "?", *where ? " in '" : "",
					 where, *where ? "'" : "");
		if (find_key(doc, node, name, NULL) != k)
			return error_set(err, -EINVAL, "%s:%u: key '%s' is given twice", file,
					 node_line(k), name);
		r = check_node(doc, yaml_document_get_node(doc, p->value), &field->value, file,
			       name, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int locate_check(const char *file, const char *text, size_t len, const cyaml_schema_value_t *schema,
		 struct error *err)
{
	const char *problem;
	yaml_document_t doc;
	yaml_node_t *root;
	unsigned line;
	int r = 0;

	if (!load_document(&doc, text, len, &line, &problem))
		return error_set(err, -EINVAL, "%s:%u: %s", file, line, problem);
	root = yaml_document_get_root_node(&doc);
	if (root)
		r = check_node(&doc, root, schema, file, "", err);
	yaml_document_delete(&doc);
	return r;
}
