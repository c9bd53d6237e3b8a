import { SERVICE_CONFIG } from "./gen/service_config.js";

interface MethodConfig {
  readonly name: readonly { readonly service: string; readonly method?: string }[];
  readonly timeout?: string;
}

const METHODS: readonly MethodConfig[] = SERVICE_CONFIG.methodConfig;

/** The published service config without deadlines: gRPC would cut a caller's longer one to them. */
export const CONFIG_WITHOUT_DEADLINES = {
  ...SERVICE_CONFIG,
  methodConfig: METHODS.map((methods) => ({ ...methods, timeout: undefined })),
};

const LIMITS = new Map<string, number | undefined>(
  METHODS.flatMap(({ name, timeout }) =>
    name.map(({ service, method = "" }) => {
      const limit = timeout === undefined ? undefined : Number.parseFloat(timeout) * 1_000;
      return [`/${service}/${method}`, limit];
    }),
  ),
);

/**
 * Milliseconds that a call may take whose caller says nothing; undefined for no limit.
 *
 * @param path - of the method, `/tallyboard.v1.CounterService/Increment` for example.
 */
export function usualLimit(path: string): number | undefined {
  // What the config says of a method hides what it says of the service.
  const key = LIMITS.has(path) ? path : path.slice(0, path.lastIndexOf("/") + 1);
  return LIMITS.get(key);
}
