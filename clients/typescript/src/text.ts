/**
 * Where a message holds a lone surrogate, which would be sent as U+FFFD: a name with one would
 * count as another name.
 *
 * @param value - a message, or a value within one.
 * @returns the path of the first such text from there, `.deltas[3].counter` for example; undefined
 *   if there is none.
 */
export function malformedText(value: unknown): string | undefined {
  if (typeof value === "string") {
    return value.isWellFormed() ? undefined : "";
  }
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) {
    return undefined;
  }
  return Array.isArray(value) ? malformedItem(value) : malformedField(value);
}

function malformedItem(items: readonly unknown[]): string | undefined {
  for (const [index, item] of items.entries()) {
    const found = malformedText(item);
    if (found !== undefined) {
      return `[${index}]${found}`;
    }
  }
  return undefined;
}

function malformedField(message: object): string | undefined {
  for (const [name, value] of Object.entries(message)) {
    // Names of fields are well formed; keys of a map need not be.
    const found = name.isWellFormed() ? malformedText(value) : "";
    if (found !== undefined) {
      return isChoice(value)
        ? `.${fieldName(value.$case)}${found.slice(".value".length)}`
        : `.${fieldName(name)}${found}`;
    }
  }
  return undefined;
}

/** Whether it is one of a `oneof`, whose name is in no path. */
function isChoice(value: unknown): value is { readonly $case: string } {
  return typeof value === "object" && value !== null && "$case" in value;
}

/** The name that the protos have for a field. */
function fieldName(name: string): string {
  return name.toWellFormed().replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
