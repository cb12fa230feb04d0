// Registers a user with the generated TypeScript client: node register.js URL KEY. Prints the state.
import { OpenAPI, RegistrationsService } from "./registrations";

declare const process: { argv: string[] };

async function main(): Promise<void> {
  const [url, key] = process.argv.slice(2);
  OpenAPI.BASE = url;
  OpenAPI.HEADERS = { "X-API-Key": key };
  const accepted = await RegistrationsService.registerUser({
    requestBody: { stockId: "clients", userId: "typescript", userInfo: { nickname: "kim" } },
    idempotencyKey: "1",
  });
  const state = await RegistrationsService.getRegistration({ id: accepted.id, wait: 20 });
  console.log(state.state);
}

void main();
